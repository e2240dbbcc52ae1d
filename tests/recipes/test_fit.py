"""``fit``: the check of the first loss, what is copied, kept, cached, resumed, refused and written."""

import json
import logging
import math

import jax
import numpy as np
import pytest

from jaxalign import data, models, recipes, sharding, training
from jaxalign.errors import InputError
from jaxalign.training import OptimizerConfig, TrainingError
from tests.recipes import toy
from tests.tolerances import BFLOAT16, FLOAT32

LN2 = math.log(2)
ADAMW = OptimizerConfig(learning_rate=1e-2)


@pytest.fixture(scope="module")
def pairs():
    return toy.examples(toy.pair_records())


def dpo(config):
    return recipes.preference_objective(config, recipes.PreferenceObjective(beta=0.5))


def options(**changes):
    return recipes.FitConfig(**{
        "max_steps": 2, "batch_size": 4, "mesh": "data=1", "optimizer": ADAMW,
    } | changes)  # fmt: skip


def fit(examples, config, *, shape="llama", objective=dpo, report=lambda *_: None, **more):
    return recipes.fit(toy.SHAPES[shape], toy.params(shape), examples, objective, config, report=report, **more)


def bits(tree):
    return [(leaf.dtype, leaf.tobytes()) for leaf in map(np.asarray, jax.tree.leaves(tree))]


# --- step 0 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "cached"), [("llama", False), ("llama", True), ("gpt2", False)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("bfloat16", BFLOAT16)])
def test_the_first_loss_is_ln_2(pairs, shape, cached, dtype, tolerance):
    result = fit(pairs, options(max_steps=1, dtype=dtype), shape=shape, cache_reference=cached)
    assert result.metrics["loss"] == pytest.approx(LN2, abs=tolerance)
    assert result.metrics["rewards/margin"] == pytest.approx(0, abs=tolerance)
    assert result.metrics["grad_norm"] > 0.01


def test_a_reference_that_scores_otherwise_ends_the_run(pairs, tmp_path, monkeypatch):
    values = [np.full(example.count("target"), -1.0, np.float32) for example in pairs]
    strange = data.with_extras(pairs, target={"reference_log_probs": values})

    def as_if_cached_here(*_, **__):
        return strange

    monkeypatch.setattr("jaxalign.recipes._fit.attach_reference_log_probs", as_if_cached_here)
    with pytest.raises(TrainingError, match=r"step 1: the loss is .*, but policy = reference makes it 0\.693147"):
        fit(pairs, options(max_steps=1), cache_reference=True, directory=tmp_path)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


def test_reference_log_probs_that_the_caller_brings_may_be_another_models(pairs):
    values = [np.full(example.count("target"), -1.0, np.float32) for example in pairs]
    brought = data.with_extras(pairs, target={"reference_log_probs": values})
    assert abs(fit(brought, options(max_steps=1)).metrics["loss"] - LN2) > 0.01


def test_a_reference_that_is_another_model_is_not_held_to_ln_2(pairs):
    result = fit(pairs, options(max_steps=1), reference=toy.params("llama", 4))
    assert abs(result.metrics["loss"] - LN2) > 0.01


# --- frozen trees -----------------------------------------------------------------------------------------------------


@pytest.fixture
def looped(monkeypatch):
    """What the loop was given and gave back."""
    seen = {}
    loop = training.run_loop

    def spy(step, state, batches, **more):
        seen["before"], seen["frozen"] = jax.tree.map(lambda leaf: leaf.shape, state), more["frozen"]
        seen["result"] = loop(step, state, batches, **more)
        return seen["result"]

    monkeypatch.setattr(training, "run_loop", spy)
    return seen


def test_what_is_frozen_survives_the_donated_step(pairs, looped):
    start, reference = toy.params("llama"), toy.params("llama", 4)
    before = bits([start, reference])
    result = fit(pairs, options(), reference=reference)
    assert bits([start, reference]) == before
    assert bits(result.params) != bits(start)
    # The step's own reference too: the state was donated twice meanwhile.
    assert bits(looped["frozen"]["reference"]) == bits(reference)


def test_policy_reference_and_base_are_one_tree_at_first_and_none_is_deleted(pairs, looped):
    start = toy.params("llama")
    before = bits(start)
    result = fit(pairs, options(frozen_layers=1))
    assert bits(start) == before
    _, top, bottom = models.freeze(toy.SHAPES["llama"], start, 1)
    assert bits(looped["frozen"]["reference"]) == bits(top)
    assert bits(looped["frozen"]["base"]) == bits(bottom)
    assert bits(looped["result"].state.params) != bits(top)
    assert result.config == toy.SHAPES["llama"]
    assert jax.tree.structure(result.params) == jax.tree.structure(start)


def test_only_what_trains_has_an_optimizer_state(pairs, looped):
    fit(pairs, options(frozen_layers=2))
    _, top, _ = models.freeze(toy.SHAPES["llama"], toy.params("llama"), 2)
    trained = sorted(leaf.shape for leaf in jax.tree.leaves(top))
    state = looped["result"].state
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.params)) == trained
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim]
    assert sorted(moments) == sorted(trained * 2)
    assert "embed" not in state.params
    assert set(state.params["stacks"]) == {"1"}


def test_a_moving_reference_is_held_once(pairs, looped):
    def moving(config):
        return recipes.preference_objective(config, recipes.PreferenceObjective(), reference_update_every=1)

    fit(pairs, options(), objective=moving)
    assert looped["frozen"]["reference"] == {}
    assert jax.tree.structure(looped["result"].state.extra["reference"]) == jax.tree.structure(toy.params("llama"))


def test_a_cached_reference_is_not_held(pairs, looped):
    fit(pairs, options(), cache_reference=True)
    assert looped["frozen"]["reference"] == {}


@pytest.mark.parametrize("shape", toy.SHAPES)
def test_a_saved_model_is_the_trained_one_bit_for_bit(pairs, shape, tmp_path):
    result = fit(pairs, options(frozen_layers=1, dtype="bfloat16"), shape=shape)
    config = result.config.replace(compute_dtype="float32")
    models.save_pretrained(tmp_path, config, result.params, toy.tokenizer())
    found_config, found = models.load_pretrained(tmp_path)
    assert found_config.replace(extra=()) == toy.SHAPES[shape]
    assert jax.tree.structure(found) == jax.tree.structure(result.params)
    assert bits(found) == bits(result.params)
    assert recipes.load_tokenizer(str(tmp_path)).encode(" good film") == toy.tokenizer().encode(" good film")


# --- resume, caches, evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (recipes.likelihood_objective, {"packing": True, "row_length": 32}),
        (
            lambda config: recipes.preference_objective(
                config, recipes.PreferenceObjective(loss=("bco",)), reference_update_every=2
            ),
            {"accumulation": 2},
        ),
    ],
    ids=["sft, packed", "bco, moving reference"],
)
def test_two_halves_are_the_whole_bit_for_bit(pairs, method, more, tmp_path):
    whole = fit(pairs, options(max_steps=6, **more), objective=method, directory=tmp_path / "whole")
    first = fit(pairs, options(max_steps=3, **more), objective=method, directory=tmp_path / "halves")
    assert first.step == 3
    second = fit(pairs, options(max_steps=6, **more), objective=method, directory=tmp_path / "halves")
    assert second.step == 6
    assert bits(second.params) == bits(whole.params)
    assert bits(second.params) != bits(first.params)
    again = fit(pairs, options(max_steps=6, **more), objective=method, directory=tmp_path / "halves")
    assert bits(again.params) == bits(whole.params)
    assert again.metrics == whole.metrics == second.metrics


def test_a_run_continues_on_another_mesh(pairs, tmp_path):
    """To float tolerance, with plain SGD: Adam would make noise of what is zero."""
    sgd = OptimizerConfig(optimizer="sgd", learning_rate=0.1)
    whole = fit(pairs, options(max_steps=4, optimizer=sgd))
    fit(pairs, options(max_steps=2, optimizer=sgd), directory=tmp_path)
    result = fit(pairs, options(max_steps=4, optimizer=sgd, mesh="data=2,fsdp=2,tensor=2"), directory=tmp_path)
    assert result.step == 4
    for found, expected in zip(*map(jax.tree.leaves, (result.params, whole.params)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * float(np.abs(expected).max()))


def test_how_a_step_is_computed_may_change_and_is_said(pairs, tmp_path, caplog):
    sgd = OptimizerConfig(optimizer="sgd", learning_rate=0.1)
    same = {"optimizer": sgd, "frozen_layers": 1}
    whole = fit(pairs, options(max_steps=4, **same))
    with caplog.at_level(logging.WARNING, "jaxalign.recipes"):
        fit(pairs, options(max_steps=1, **same), directory=tmp_path)
        fit(pairs, options(max_steps=2, **same), directory=tmp_path)
        assert not caplog.records  # nothing but the length: bit for bit, and not a word
        how = {"accumulation": 2, "remat": "full", "attention": "xla", "cache_trunk": True, "mesh": "data=2"}
        result = fit(pairs, options(max_steps=4, **same, **how), directory=tmp_path)
    assert result.step == 4
    for found, expected in zip(*map(jax.tree.leaves, (result.params, whole.params)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * float(np.abs(expected).max()))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path} goes on with --accumulation 2 (it was 1), --attention xla (it was auto), --cache-trunk True (it "
        "was False), --mesh data=2 (it was data=1), --remat full (it was none): the same to rounding, not bit for bit"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation": 2, "batch_size": 8}, "--batch-size is 8, but .* was started with 4"),
        ({"remat": "full", "dtype": "bfloat16"}, '--dtype is "bfloat16"'),
        ({"mesh": "data=2", "seed": 1}, "--seed is 1"),
        ({"packing": True}, "--packing is true"),
        ({"pair_layout": "two_rows"}, "--pair-layout"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_what_a_step_computes_may_not_change(pairs, tmp_path, changes, message):
    fit(pairs, options(max_steps=1), directory=tmp_path)
    with pytest.raises(InputError, match=message):
        fit(pairs, options(**changes), directory=tmp_path)


def test_the_seed_decides_the_order(pairs):
    runs = [fit(pairs, options(seed=seed)) for seed in (0, 0, 1)]
    assert bits(runs[0].params) == bits(runs[1].params)
    assert bits(runs[0].params) != bits(runs[2].params)


def test_cached_reference_log_probs_are_read_again_only_for_the_same_reference(pairs, tmp_path, monkeypatch):
    first = fit(pairs, options(max_steps=1), cache_reference=True, directory=tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1

    def never(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr("jaxalign.recipes._cached.example_log_probs", never)
        again = fit(pairs, options(max_steps=2), cache_reference=True, directory=tmp_path)
    assert again.step == 2
    assert first.step == 1

    def warmer(config):
        return recipes.preference_objective(config, recipes.PreferenceObjective(temperature=1.00001))

    for changes in ({"reference": toy.params("llama", 4)}, {"objective": warmer}):
        with monkeypatch.context() as patch:
            patch.setattr("jaxalign.recipes._cached.example_log_probs", never)
            with pytest.raises(AssertionError, match="computed again"):
                fit(pairs, options(max_steps=2), cache_reference=True, directory=tmp_path, **changes)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 0x10])


@pytest.mark.parametrize("damage", [flipped, lambda content: content[: len(content) // 2]], ids=["a bit", "cut short"])
def test_damaged_reference_log_probs_are_computed_again(pairs, tmp_path, damage, caplog):
    first = fit(pairs, options(max_steps=1), cache_reference=True, directory=tmp_path / "first")
    (path,) = (tmp_path / "first" / "cache").iterdir()
    whole = path.read_bytes()
    other = tmp_path / "second" / "cache" / path.name
    other.parent.mkdir(parents=True)
    other.write_bytes(damage(whole))
    again = fit(pairs, options(max_steps=1), cache_reference=True, directory=tmp_path / "second")
    assert bits(again.params) == bits(first.params)
    assert other.read_bytes() == whole
    assert f"{other} is damaged" in caplog.text


def test_evaluation_is_the_loss_on_other_examples(pairs, tmp_path):
    held_out, rest = pairs[:3], pairs[3:]
    seen = []

    def evaluate(step, params):
        assert jax.tree.structure(params) == jax.tree.structure(toy.params("llama"))
        seen.append(step)
        return {"own": float(step)}

    result = fit(
        rest,
        options(max_steps=3, eval_every=2, frozen_layers=1, cache_trunk=True),
        cache_reference=True,
        eval_examples=held_out,
        evaluate=evaluate,
        directory=tmp_path,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = {row["step"]: row for row in rows if "eval/loss" in row}
    assert list(evaluations) == seen == [0, 2, 3]
    assert evaluations[0]["eval/loss"] == pytest.approx(LN2, abs=FLOAT32)
    # At the end it is the loss of the model that was returned.
    log_probs = [
        recipes.example_log_probs(toy.SHAPES["llama"], tree, held_out, mesh=sharding.parse_mesh("data=1"))
        for tree in (result.params, toy.params("llama"))
    ]
    margins = [
        sum((new - old)[example.target_sequence == 0]) - sum((new - old)[example.target_sequence == 1])
        for example, new, old in zip(held_out, *log_probs, strict=True)
    ]
    expected = np.mean(np.logaddexp(0, -0.5 * np.array(margins)))
    assert evaluations[3]["eval/loss"] == pytest.approx(expected, rel=FLOAT32)
    assert abs(expected - LN2) > 0.001
    assert evaluations[3]["own"] == 3.0


def test_without_a_directory_nothing_is_written(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(pairs, options(max_steps=1), cache_reference=True)
    assert list(tmp_path.iterdir()) == []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_computed_once_tells_how_far_it_is(pairs):
    config, trainable, base = models.freeze(toy.SHAPES["llama"], toy.params("llama"), 2)
    told, known = [], {"mesh": sharding.parse_mesh("data=1"), "batch_size": 4}
    count = len(pairs)

    def tell(done, total):
        told.append((done, total))

    recipes.attach_trunk(config, base, pairs, on_progress=tell, **known)
    recipes.attach_reference_log_probs(config, base, trainable, pairs, temperature=1.0, on_progress=tell, **known)
    once = [(min(done, count), count) for done in range(4, count + 4, 4)]
    assert told == once * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_layers": 4}, "--frozen-layers: the model has 3 layers, not 4"),
        ({"batch_size": 3, "mesh": "data=2"}, "--batch-size: 3 rows do not divide into 2 data shards"),
        ({"accumulation": 3}, "--batch-size: 4 rows do not divide into 3 micro-batches"),
        ({"mesh": "data=3,rows=2"}, "--mesh data=3,rows=2: unknown axis 'rows'"),
        ({"packing": True, "row_length": 8}, "more than the rows' max_length 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pairs, changes, message):
    with pytest.raises(InputError) as caught:
        fit(pairs, options(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs: must be at least 1, is 0"),
        ({"max_steps": 0}, "--max-steps: must be at least 1, is 0"),
        ({"frozen_layers": -1}, "--frozen-layers: must be at least 0, is -1"),
        ({"seed": -1}, "--seed: must be at least 0, is -1"),
        ({"cache_trunk": True}, "--cache-trunk: nothing to cache without --frozen-layers"),
        ({"frozen_dtype": "bfloat16"}, "--frozen-dtype: bfloat16 would round what --dtype float32 computes with"),
        ({"row_length": 64}, "--row-length: rows are as long as the longest example without --packing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError) as caught:
        recipes.FitConfig(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("where", ["examples", "eval_examples"])
@pytest.mark.parametrize("field", ["tokens", "positions"])
def test_an_index_past_the_end_of_a_table_is_refused(pairs, where, field):
    example = pairs[2]
    value = np.array(getattr(example, field))
    value[-1] = toy.VOCABULARY if field == "tokens" else 64
    odd = example.replace(**{field: value})
    message = {"tokens": "the token 304, but the model's vocabulary has 304", "positions": "the model has 64"}[field]
    some, held_out = ([*pairs, odd], []) if where == "examples" else (pairs, [odd])
    with pytest.raises(InputError, match=f"record 2 has .*{message}"):
        fit(some, options(), eval_examples=held_out)


def test_held_out_examples_that_carry_less_are_refused(pairs):
    values = [np.zeros(example.count("target"), np.float32) for example in pairs]
    carrying = data.with_extras(pairs, target={"reference_log_probs": values})
    with pytest.raises(InputError, match=r"eval_examples: .* must carry reference_log_probs both, or neither"):
        fit(carrying, options(), eval_examples=pairs)


def test_frozen_layers_and_another_reference_are_refused(pairs):
    with pytest.raises(InputError, match="--reference: with --frozen-layers"):
        fit(pairs, options(frozen_layers=1), reference=toy.params("llama", 4))
