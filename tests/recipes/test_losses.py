"""Every loss by name, through the model and the data path, against plain NumPy in float64."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from jaxalign import data, models, recipes, sharding
from jaxalign.errors import InputError
from jaxalign.recipes import LOSSES, PreferenceObjective
from jaxalign.training import weighted_total
from tests.recipes import toy
from tests.recipes.toy import STEPS, assert_same_run
from tests.tolerances import FLOAT32

BETA = 0.5
ONE_DEVICE = sharding.parse_mesh("data=1")
COUPLED = ("aot", "aot_unpaired", "kto")
ROW_WISE = tuple(name for name in LOSSES if name not in COUPLED)


# --- the same in NumPy ------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


@dataclasses.dataclass
class Answers:
    """Token log-probabilities of every pair's two answers under both models: lists of arrays, nats."""

    policy_chosen: list
    policy_rejected: list
    reference_chosen: list
    reference_rejected: list

    def sums(self, weigh=lambda values, shorter: values.sum()):
        shorter = [min(len(w), len(x)) for w, x in zip(self.policy_chosen, self.policy_rejected, strict=True)]
        return tuple(
            np.array([weigh(values, n) for values, n in zip(getattr(self, field.name), shorter, strict=True)])
            for field in dataclasses.fields(self)
        )


def answers(examples, policy, reference):
    """By the definition: a pair is (i, j), an answer its targets in order."""

    def split(example, values):
        return [values[example.target_sequence == slot].astype(np.float64) for slot in range(example.sequences)]

    found = Answers([], [], [], [])
    for example, new, old in zip(examples, policy, reference, strict=True):
        for chosen, rejected in example.pairs:
            found.policy_chosen.append(split(example, new)[chosen])
            found.policy_rejected.append(split(example, new)[rejected])
            found.reference_chosen.append(split(example, old)[chosen])
            found.reference_rejected.append(split(example, old)[rejected])
    return found


def pair_values(name, given, objective, shift=0.0):
    """One value a pair, from the papers' formulas."""
    beta, e = objective.beta, objective.label_smoothing
    options = LOSSES[name].options
    pw, pl, rw, rl = given.sums()
    lengths = [np.array([len(values) for values in side]) for side in (given.policy_chosen, given.policy_rejected)]
    means = pw / lengths[0], pl / lengths[1]
    if name == "simpo":
        return -log_sigmoid(beta * (means[0] - means[1]) - objective.simpo_margin)
    if name == "orpo":
        odds = [mean - np.log1p(-np.exp(mean)) for mean in means]
        return -means[0] - objective.orpo_weight * log_sigmoid(odds[0] - odds[1])
    weight = np.ones_like(pw)
    if objective.policy_weighting and "policy_weighting" in options:
        weight = np.minimum(np.exp(means[0] + means[1]), 1)
    if objective.length_desensitised is not None and "length_desensitised" in options:
        alpha = objective.length_desensitised
        pw, pl, rw, rl = given.sums(lambda values, n: values[:n].sum() + alpha * values[n:].sum())
    if objective.average_log_probs and name == "ipo":
        pw, pl, rw, rl = pw / lengths[0], pl / lengths[1], rw / lengths[0], rl / lengths[1]
    a, b = pw - rw, pl - rl
    if "divergence" in options:
        transform = {
            "reverse_kl": lambda x: x,
            "forward_kl": lambda x: -np.exp(-x),
            "jensen_shannon": log_sigmoid,
            "alpha": lambda x: np.exp(-objective.divergence_alpha * x) / -objective.divergence_alpha,
        }[objective.divergence]
        a, b = transform(a), transform(b)
    h = a - b
    modulation = sigmoid(beta * h / objective.discopop_temperature)
    kl = max(0.0, np.concatenate([a, b]).mean())
    return (
        weight
        * {
            "sigmoid": lambda: -(1 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h),
            "ipo": lambda: (h - 1 / (2 * beta)) ** 2,
            "hinge": lambda: np.maximum(0, 1 - beta * h),
            "robust": lambda: (-(1 - e) * log_sigmoid(beta * h) + e * log_sigmoid(-beta * h)) / (1 - 2 * e),
            "exo": lambda: (
                sigmoid(beta * h) * (log_sigmoid(beta * h) - np.log(1 - (e or 1e-3)))
                + sigmoid(-beta * h) * (log_sigmoid(-beta * h) - np.log(e or 1e-3))
            ),
            "sppo_hard": lambda: (a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2,
            "nca": lambda: -log_sigmoid(beta * a) - log_sigmoid(-beta * a) / 2 - log_sigmoid(-beta * b) / 2,
            "apo_zero": lambda: 1 - sigmoid(beta * a) + sigmoid(beta * b),
            "apo_down": lambda: sigmoid(beta * a) + 1 - sigmoid(beta * h),
            "discopop": lambda: -log_sigmoid(beta * h) * (1 - modulation) + np.exp(-beta * h) * modulation,
            "bco": lambda: -log_sigmoid(beta * a - shift) - log_sigmoid(-(beta * b - shift)),
            "aot": lambda: -log_sigmoid(beta * (np.sort(pw - pl) - np.sort(rw - rl))),
            "aot_unpaired": lambda: -log_sigmoid(beta * (np.sort(a) - np.sort(b))),
            "kto": lambda: (
                objective.desirable_weight * (1 - sigmoid(beta * (a - kl)))
                + objective.undesirable_weight * (1 - sigmoid(beta * (kl - b)))
            ),
            "unweighted": lambda: -beta * h,
        }[name]()
    )


def expected_terms(given, objective, shift=0.0):
    """{term: (mean, coefficient)}"""
    coefficients = objective.loss_weights or (1.0,) * len(objective.loss)
    terms = {}
    for name, coefficient in zip(objective.loss, coefficients, strict=True):
        if name in ("preferred_ft", "unlikelihood"):
            own = {"preferred": (-np.concatenate(given.policy_chosen).mean(), coefficient)}
            if name == "unlikelihood" and objective.unlikelihood_weight:
                value = -np.log1p(-np.exp(np.concatenate(given.policy_rejected))).mean()
                own["unlikelihood"] = (value, coefficient * objective.unlikelihood_weight)
        else:
            own = {name: (pair_values(name, given, objective, shift).mean(), coefficient)}
        terms |= {term if term not in terms else f"{name}_{term}": value for term, value in own.items()}
    return terms


def total(terms):
    return sum(value * coefficient for value, coefficient in terms.values())


# --- at one point, policy and reference apart -------------------------------------------------------------------------


def objective(*names, **options):
    options = {"beta": BETA} | options
    if not any("beta" in LOSSES[name].options for name in names):
        options.pop("beta")
    if "exo" in names or "robust" in names:
        options.setdefault("label_smoothing", 0.1)
    return PreferenceObjective(loss=names, **options)


OBJECTIVES = {name: objective(name) for name in LOSSES} | {
    "cDPO": objective("sigmoid", label_smoothing=0.2),
    "exo, certain labels": objective("exo", label_smoothing=0.0),
    "forward KL": objective("sigmoid", divergence="forward_kl"),
    "Jensen-Shannon": objective("ipo", divergence="jensen_shannon"),
    "alpha divergence": objective("hinge", divergence="alpha", divergence_alpha=0.7),
    "ipo, averaged": objective("ipo", average_log_probs=True),
    "LD-DPO": objective("sigmoid", length_desensitised=0.3),
    "LD-DPO without the tail": objective("sigmoid", length_desensitised=0.0),
    "WPO": objective("sigmoid", policy_weighting=True),
    "WPO, LD-DPO, ipo": objective("ipo", policy_weighting=True, length_desensitised=0.5),
    "kto, weighted": objective("kto", desirable_weight=1.3, undesirable_weight=0.4),
    "unlikelihood, weighted": objective("unlikelihood", unlikelihood_weight=0.25),
    "unlikelihood, weight 0": objective("unlikelihood", unlikelihood_weight=0.0),
    "temperature": objective("sigmoid", temperature=0.7),
    "mix": objective("sigmoid", "preferred_ft", loss_weights=(1.0, 0.2)),
    "mix of token losses": objective("preferred_ft", "unlikelihood", loss_weights=(0.5, 2.0), unlikelihood_weight=0.3),
    "mix, options of one": objective(
        "sigmoid", "simpo", "aot", "nca", loss_weights=(0.3, 0.5, 2.0, 1.0), length_desensitised=0.2,
        policy_weighting=True, divergence="forward_kl",
    ),
}  # fmt: skip
POLICY, REFERENCE = 3, 0


@functools.cache
def ranked():
    return toy.examples(toy.ranked_records())


@functools.cache
def log_probs(seed, temperature):
    return recipes.example_log_probs(
        toy.SHAPES["llama"], toy.params("llama", seed), ranked(), temperature=temperature, mesh=ONE_DEVICE
    )


@pytest.fixture(scope="module")
def computed():
    """{case: terms of the recipe's loss} and their gradients' norms, all from one program."""
    config = toy.SHAPES["llama"]
    batch = data.make_batches(ranked(), batch_size=3, num_epochs=1)[0]

    def every(params, reference):
        frozen, found = {"base": {}, "reference": reference}, {}
        for case, options in OBJECTIVES.items():
            method = recipes.preference_objective(config, options)
            extra = method.initial_extra(reference)
            found[case] = method.loss(params, frozen, batch, jax.random.key(0), extra)
        return found

    return jax.device_get(jax.jit(every)(toy.params("llama", POLICY), toy.params("llama", REFERENCE)))


@pytest.mark.parametrize("case", OBJECTIVES)
def test_the_loss_is_its_formula(case, computed):
    options = OBJECTIVES[case]
    given = answers(ranked(), *(log_probs(seed, options.temperature) for seed in (POLICY, REFERENCE)))
    expected = expected_terms(given, options)
    terms, _ = computed[case]
    assert terms.keys() == expected.keys()
    for term, (value, weight, coefficient) in terms.items():
        np.testing.assert_allclose(value / weight, expected[term][0], rtol=FLOAT32, err_msg=term)
        assert coefficient == pytest.approx(expected[term][1])
    np.testing.assert_allclose(weighted_total(terms), total(expected), rtol=FLOAT32)


@pytest.mark.parametrize("case", OBJECTIVES)
def test_the_metrics_are_those_of_whole_answers(case, computed):
    options = OBJECTIVES[case]
    given = answers(ranked(), *(log_probs(seed, options.temperature) for seed in (POLICY, REFERENCE)))
    metrics = {name: value / count for name, (value, count) in computed[case][1].items()}
    pw, pl, rw, rl = given.sums()
    expected = {
        "log_probs/chosen": pw.mean(),
        "log_probs/rejected": pl.mean(),
        "tokens/chosen": np.mean([len(values) for values in given.policy_chosen]),
        "tokens/rejected": np.mean([len(values) for values in given.policy_rejected]),
    }
    if options.needs_reference:
        a, b = pw - rw, pl - rl
        expected |= {
            "log_ratios/chosen": a.mean(),
            "log_ratios/rejected": b.mean(),
            "rewards/chosen": options.beta * a.mean(),
            "rewards/rejected": options.beta * b.mean(),
            "rewards/margin": options.beta * (a - b).mean(),
            "rewards/accuracy": np.mean(a > b),
        }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=FLOAT32, err_msg=name)


# --- while training ---------------------------------------------------------------------------------------------------


def make(options):
    return lambda config: recipes.preference_objective(config, options)


@functools.cache
def pairs():
    return toy.examples(toy.pair_records())


MIXES = {
    "row-wise": (objective(*ROW_WISE, loss_weights=(0.05,) * len(ROW_WISE)), {"accumulation": 3}),
    "coupled": (objective(*COUPLED), {}),
    "WPO, LD-DPO, forward KL": (
        # The weights are some e^-12 in a vocabulary of 304; larger steps multiply their rounding (exponentials of sums
        # of some -12 nats are known to 1e-6) past the tolerance within five updates.
        objective(
            "sigmoid", loss_weights=(1e4,), length_desensitised=0.2, policy_weighting=True, divergence="forward_kl"
        ),
        {"accumulation": 3},
    ),
}


@functools.cache
def mixed(case):
    return toy.train("llama", pairs(), make(MIXES[case][0]))


@pytest.mark.parametrize("case", MIXES)
def test_layout_micro_batches_and_grouping_change_no_loss(case):
    """One shared row a pair, all at once = all answers to a prompt in rows of their own, a record a micro-batch."""
    options, more = MIXES[case]
    found = toy.train("llama", ranked(), make(options), pair_layout="two_rows", **more)
    assert_same_run(found, mixed(case))
    terms = [name for name in mixed(case).metrics[0] if name.startswith("loss/")]
    assert len(terms) == {"row-wise": len(ROW_WISE) + 1, "coupled": len(COUPLED)}.get(case, 0)
    for name in terms:
        left, right = ([row[name] for row in one.metrics] for one in (found, mixed(case)))
        assert np.isfinite(left).all()
        np.testing.assert_allclose(left, right, rtol=FLOAT32, atol=FLOAT32, err_msg=name)


def training_answers(found, step, reference=None):
    """What the update ``step`` (from 0) saw."""
    config = toy.SHAPES["llama"]
    reference = found.tree[0] if reference is None else reference
    trees = [jax.tree.map(jax.numpy.asarray, tree) for tree in (found.tree[step], reference)]
    return answers(pairs(), *(recipes.example_log_probs(config, tree, pairs(), mesh=ONE_DEVICE) for tree in trees))


def test_bco_shifts_by_the_mean_reward_of_the_steps_before():
    rewards = []
    for step in range(STEPS):
        given = training_answers(mixed("row-wise"), step)
        shift = np.mean(rewards) if rewards else 0.0
        expected = pair_values("bco", given, objective("bco"), shift).mean()
        np.testing.assert_allclose(mixed("row-wise").metrics[step]["loss/bco"], expected, rtol=FLOAT32)
        pw, pl, rw, rl = given.sums()
        rewards.append(BETA * np.concatenate([pw - rw, pl - rl]))
    assert abs(np.mean(rewards)) > 0.01


@pytest.mark.parametrize("given_reference", [False, True])
def test_the_moving_reference_moves_at_its_steps_only(given_reference):
    """TR-DPO: after updates 2 and 4, by the rate, from where it was: at first the policy, or the reference given."""
    options = objective("sigmoid")
    reference = toy.params("llama", 5) if given_reference else None
    found = toy.train(
        "llama",
        pairs(),
        lambda config: recipes.preference_objective(
            config, options, reference_update_every=2, reference_update_rate=0.6
        ),
        reference=reference,
    )
    where = found.tree[0] if reference is None else jax.tree.map(np.asarray, reference)
    for step in range(STEPS):
        if step in (2, 4):
            where = jax.tree.map(lambda old, new: 0.4 * old + 0.6 * new, where, found.tree[step])
        expected = pair_values("sigmoid", training_answers(found, step, where), options).mean()
        np.testing.assert_allclose(found.losses[step], expected, rtol=FLOAT32)


@pytest.mark.parametrize(("answer", "name"), [("chosen", "preferred_ft")])
def test_preferred_ft_on_pairs_is_sft_on_the_chosen_answers(answer, name):
    found = toy.train("llama", pairs(), make(objective(name)))
    demonstrations = toy.examples(toy.pair_records(), kind=answer)
    assert_same_run(found, toy.train("llama", demonstrations, recipes.likelihood_objective))


@pytest.mark.parametrize("name", LOSSES)
def test_only_losses_that_couple_rows_refuse_micro_batches(name):
    method = recipes.preference_objective(toy.SHAPES["llama"], objective(name))
    assert method.couples_rows == (name in COUPLED)
    if name in COUPLED:
        with pytest.raises(InputError, match="--accumulation"):
            toy.train("llama", pairs(), make(objective(name)), accumulation=2)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "--loss: 'sigmod' is unknown; did you mean 'sigmoid'?": {"loss": ("sigmod",)},
    "--loss: name at least one": {"loss": ()},
    "--loss-weights: 1 weights for 2 losses": {"loss": ("sigmoid", "ipo"), "loss_weights": (1.0,)},
    "--label-smoothing: not read by loss ipo": {"loss": ("ipo",), "label_smoothing": 0.1},
    "--beta: not read by loss preferred_ft": {"loss": ("preferred_ft",), "beta": 0.3},
    "--length-desensitised: not read by loss bco": {"loss": ("bco",), "length_desensitised": 0.5},
    "--policy-weighting: not read by loss aot": {"loss": ("aot",), "policy_weighting": True},
    "--divergence-alpha: not read by --divergence reverse_kl": {"divergence_alpha": 0.3},
    "--divergence-alpha: not read by loss kto": {"loss": ("kto",), "divergence_alpha": 0.3},
    "--divergence: not read by loss kto": {"loss": ("kto",), "divergence": "alpha"},
    "--divergence-alpha: must be other than 0": {"divergence": "alpha", "divergence_alpha": 0.0},
    "--simpo-margin: not read by loss sigmoid": {"simpo_margin": 1.0},
    "--beta: must be above 0, is 0": {"beta": 0.0},
    "--temperature: must be above 0": {"temperature": 0.0},
    "--label-smoothing: must be in [0, 0.5)": {"label_smoothing": 0.5},
    "--unlikelihood-weight: must be in [0, 1]": {"loss": ("unlikelihood",), "unlikelihood_weight": 1.5},
    "--length-desensitised: must be in [0, 1]": {"length_desensitised": -0.5},
    "--orpo-weight: must be at least 0": {"loss": ("orpo",), "orpo_weight": -1.0},
    "--undesirable-weight: must be at least 0": {"loss": ("kto",), "undesirable_weight": -1.0},
    "--discopop-temperature: must be above 0": {"loss": ("discopop",), "discopop_temperature": 0.0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_make_no_sense_are_refused_by_flag(message):
    with pytest.raises(InputError) as caught:
        PreferenceObjective(**REFUSED[message])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"reference_update_every": 2, "reference_update_rate": 0.0}, "--reference-update-rate"),
        ({"reference_update_every": -1}, "--reference-update-every"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(options, flag):
    with pytest.raises(InputError, match=flag):
        recipes.preference_objective(toy.SHAPES["llama"], objective("sigmoid"), **options)


def test_a_moving_reference_that_nobody_reads_is_refused():
    with pytest.raises(InputError, match="--reference-update-every: loss simpo reads no reference"):
        recipes.preference_objective(toy.SHAPES["llama"], objective("simpo"), reference_update_every=2)


def test_first_loss_is_known_for_plain_dpo_only():
    config = toy.SHAPES["llama"]
    assert recipes.preference_objective(config, objective("sigmoid")).first_loss == pytest.approx(math.log(2))
    weighted = objective("sigmoid", loss_weights=(0.25,))
    assert recipes.preference_objective(config, weighted).first_loss == pytest.approx(math.log(2) / 4)
    for other in (objective("ipo"), objective("sigmoid", "ipo"), objective("sigmoid", policy_weighting=True)):
        assert recipes.preference_objective(config, other).first_loss is None


def test_models_is_what_the_tests_say():
    """The two shapes differ where it matters: norms, positions, biases, the feed-forward layer, grouped queries."""
    llama, gpt2 = (toy.SHAPES[name] for name in ("llama", "gpt2"))
    for field in ("norm", "position", "gated_mlp", "attention_bias"):
        assert getattr(llama, field) != getattr(gpt2, field)
    assert llama.kv_heads < llama.heads
    assert isinstance(llama, models.ModelConfig)
