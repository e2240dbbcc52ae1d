"""What each preference loss promises beyond its closed form: the gradient formulas, minima, limits and invariances."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign import losses
from tests.tolerances import BFLOAT16, FLOAT32, FLOAT64

few = settings(max_examples=30, deadline=None)
scores = arrays(np.float64, 5, elements=st.floats(-50, 50))
four = st.tuples(scores, scores, scores, scores)
betas = st.floats(0.01, 5)


def close(actual, expected, tolerance: float = FLOAT64) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


class Policy:
    """A log-linear policy over eight answers to three prompts, so that grad log pi is a real gradient."""

    features = np.random.default_rng(3).normal(size=(3, 8, 4))

    @classmethod
    def log_prob(cls, params, prompt: int, answer: int):
        return jax.nn.log_softmax(jnp.asarray(cls.features[prompt]) @ params)[answer]


@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_formula(weighted: bool) -> None:
    """-beta sigmoid(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l)); the ablation has 1 in place of the sigmoid."""
    beta, prompt, chosen, rejected = 0.4, 1, 2, 6
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params, reference = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
        reference_scores = [Policy.log_prob(reference, prompt, answer) for answer in (chosen, rejected)]

        def objective(params):
            scores = [Policy.log_prob(params, prompt, answer) for answer in (chosen, rejected)]
            loss = losses.dpo if weighted else losses.unweighted_dpo
            return loss(*scores, *reference_scores, beta=beta)

        rewards = [
            beta * (Policy.log_prob(params, prompt, answer) - score)
            for answer, score in zip((chosen, rejected), reference_scores, strict=True)
        ]
        weight = jax.nn.sigmoid(rewards[1] - rewards[0]) if weighted else 1.0
        raise_chosen, raise_rejected = (
            jax.grad(Policy.log_prob)(params, prompt, answer) for answer in (chosen, rejected)
        )
        close(jax.grad(objective)(params), -beta * weight * (raise_chosen - raise_rejected))


@given(scores, scores, betas)
@few
def test_dpo_at_the_reference_is_ln_2(chosen, rejected, beta: float) -> None:
    for dtype, tolerance in ((jnp.float32, FLOAT32), (jnp.bfloat16, BFLOAT16)):
        pair = (jnp.asarray(chosen, dtype), jnp.asarray(rejected, dtype))
        close(losses.dpo(*pair, *pair, beta=beta), math.log(2), tolerance)
        close(losses.dpo(*pair, *pair, beta=beta, label_smoothing=0.2), math.log(2), tolerance)


@given(four, betas, st.floats(-50, 50))
@few
def test_dpo_does_not_see_what_the_prompt_adds(x, beta: float, shift: float) -> None:
    """log Z(x) cancels: shifting both answers' log-probabilities, or both models', changes nothing."""
    with jax.enable_x64(True):
        loss = partial(losses.dpo, beta=beta)
        pc, pr, rc, rr = (jnp.asarray(score) for score in x)
        close(loss(pc + shift, pr + shift, rc, rr), loss(pc, pr, rc, rr))
        close(loss(pc + shift, pr, rc + shift, rr), loss(pc, pr, rc, rr))


@given(four, betas)
@few
def test_swapped_labels(x, beta: float) -> None:
    """cDPO at 1/2 does not know the labels; robust DPO's expectation over flipped labels is DPO."""
    with jax.enable_x64(True):
        pc, pr, rc, rr = (jnp.asarray(score) for score in x)
        half = partial(losses.dpo, beta=beta, label_smoothing=0.5)
        close(half(pc, pr, rc, rr), half(pr, pc, rr, rc))
        robust = partial(losses.robust_dpo, beta=beta, label_smoothing=0.3)
        expected = 0.7 * robust(pc, pr, rc, rr) + 0.3 * robust(pr, pc, rr, rc)
        close(expected, losses.dpo(pc, pr, rc, rr, beta=beta))
        close(losses.robust_dpo(pc, pr, rc, rr, beta=beta, label_smoothing=0.0), losses.dpo(pc, pr, rc, rr, beta=beta))


@given(betas)
@few
def test_ipo_minimum(beta: float) -> None:
    with jax.enable_x64(True):
        zero = jnp.float64(0)
        value, slope = jax.value_and_grad(lambda h: losses.ipo(h, zero, zero, zero, beta=beta))(1 / (2 * beta))
        close(value, 0)
        close(slope, 0)
        for nearby in (0.9, 1.1):
            assert losses.ipo(jnp.float64(nearby / (2 * beta)), zero, zero, zero, beta=beta) > 0


@given(betas)
@few
def test_sppo_minimum(beta: float) -> None:
    with jax.enable_x64(True):
        zero, goal = jnp.float64(0), jnp.float64(1 / (2 * beta))
        gradient = jax.grad(lambda a, b: losses.sppo_hard(a, b, zero, zero, beta=beta), (0, 1))(goal, -goal)
        close(gradient, (0, 0))


def test_hinge_stops_at_the_margin() -> None:
    slope = jax.grad(lambda h: losses.hinge(h, 0.0, 0.0, 0.0, beta=0.5))
    assert slope(2.5) == 0
    assert slope(1.5) == -0.5


@given(st.floats(0.01, 0.49), betas)
@few
def test_exo_minimum_is_the_smoothed_label(smoothing: float, beta: float) -> None:
    with jax.enable_x64(True):
        zero, goal = jnp.float64(0), jnp.float64(math.log((1 - smoothing) / smoothing) / beta)
        loss = partial(losses.exo, beta=beta, label_smoothing=smoothing)
        value, slope = jax.value_and_grad(lambda h: loss(h, zero, zero, zero))(goal)
        close(value, 0)
        close(slope, 0)


def test_discopop_has_logistic_and_exponential_ends() -> None:
    zero = jnp.float32(0)
    close(losses.discopop(jnp.float32(-9), zero, zero, zero, beta=1.0), math.log1p(math.exp(9)), FLOAT32)
    close(losses.discopop(jnp.float32(9), zero, zero, zero, beta=1.0), math.exp(-9), FLOAT32)
    slope = jax.grad(lambda h: losses.discopop(h, zero, zero, zero, beta=1.0, temperature=0.05))
    assert slope(-1e4) == pytest.approx(-1, rel=FLOAT32)


def test_apo_pushes_the_chosen_answer_up_and_down() -> None:
    zero = jnp.float32(0)
    up = jax.grad(lambda a: losses.apo_zero(a, zero, zero, zero, beta=1.0))(zero)
    # At the policy = reference the two forces of apo_down cancel; once the pair is apart, the chosen answer falls.
    down = jax.grad(lambda a: losses.apo_down(a, jnp.float32(-3), zero, zero, beta=1.0))(zero)
    assert up < 0 < down


def test_unweighted_dpo_pushes_pairs_that_are_already_ordered() -> None:
    zero = jnp.float32(0)
    for loss, slope in ((losses.dpo, 0.0), (losses.unweighted_dpo, -0.1)):
        gradient = jax.grad(lambda a, loss=loss: loss(a, zero, zero, zero, beta=0.1))(jnp.float32(400))
        assert gradient == pytest.approx(slope, abs=1e-6)


def test_any_one_shape_for_all_four() -> None:
    x = [jnp.asarray(np.random.default_rng(i).normal(size=(3, 4)), jnp.float32) for i in range(4)]
    for name in ("dpo", "ipo", "hinge", "sppo_hard", "nca", "apo_zero", "apo_down", "discopop", "bco"):
        loss = partial(getattr(losses, name), beta=0.2)
        flat = loss(*(array.ravel() for array in x))
        close(loss(*x).ravel(), flat, FLOAT32)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("dpo", {"beta": 0.0}),
        ("dpo", {"beta": 0.1, "label_smoothing": 0.6}),
        ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.5}),
        ("exo", {"beta": 0.1, "label_smoothing": 0.0}),
        ("discopop", {"beta": 0.1, "temperature": 0.0}),
        ("ipo", {"beta": -1.0}),
    ],
)
def test_numbers_outside_their_range_are_errors(name: str, kwargs: dict[str, float]) -> None:
    culprit = list(kwargs)[-1]
    with pytest.raises(ValueError, match=culprit):
        getattr(losses, name)(*(jnp.zeros(2),) * 4, **kwargs)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_divergences_are_derivatives(name: str) -> None:
    """The transform is f'(u) at u = e^x up to a constant: their differences agree with autodiff of f."""
    alpha = 0.4
    generators = {
        "reverse_kl": lambda u: u * jnp.log(u),
        "forward_kl": lambda u: -jnp.log(u),
        "jensen_shannon": lambda u: u * jnp.log(u) - (u + 1) * jnp.log((u + 1) / 2),
        "alpha": lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
    }
    with jax.enable_x64(True):
        x = jnp.linspace(-3.0, 3.0, 7)
        derivative = jax.vmap(jax.grad(generators[name]))(jnp.exp(x))
        transform = losses.divergence_ratio(x, divergence=name, alpha=alpha)
        close(jnp.diff(transform), jnp.diff(derivative))
        zeros = jnp.zeros_like(x)
        if name == "reverse_kl":
            plain = losses.dpo(x, -x, zeros, zeros, beta=0.3)
            close(losses.dpo(transform, -transform, zeros, zeros, beta=0.3), plain)


def test_divergence_names() -> None:
    with pytest.raises(ValueError, match="total_variation"):
        losses.divergence_ratio(jnp.zeros(2), divergence="total_variation")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reverse_kl_ratio"):
        losses.alpha_divergence_ratio(jnp.zeros(2), alpha=0.0)


def test_wpo_weights_have_no_gradient() -> None:
    means = jnp.asarray([-0.5, -2.0]), jnp.asarray([-1.0, -0.25])
    close(losses.wpo_weights(*means), np.exp([-1.5, -2.25]), FLOAT32)
    gradient = jax.grad(lambda a, b: losses.wpo_weights(a, b).sum(), (0, 1))(*means)
    assert not any(leaf.any() for leaf in gradient)
    close(losses.wpo_weights(jnp.float32(1e4), jnp.float32(1e4)), 1, FLOAT32)
