"""Update rules against recurrences written out in NumPy (torch's formulas), schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import InputError
from jaxalign.training import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from tests.tolerances import FLOAT64

SHAPES = {"kernel": (3, 4), "norm": (2, 4), "bias": (4,)}
STEPS = 6


def gradients():
    rng = np.random.default_rng(0)
    scales = [1.0, 0.01, 5.0, 0.0, 1e-6, 2.0]  # small and zero gradients: where epsilon's place shows
    return [{name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()} for scale in scales]


def start():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def ours(config):
    with jax.enable_x64(True):
        optimizer, _ = make_optimizer(config, STEPS)
        params = jax.tree.map(jnp.asarray, start())
        state = optimizer.init(params)
        for grads in gradients():
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
            params = optax.apply_updates(params, updates)
        return jax.device_get(params)


def by_hand(config, rule):
    """rule(param, grad, memory, k, decayed) -> param, with a dict of memory a leaf."""
    params = start()
    memory = {name: {} for name in params}
    for k, grads in enumerate(gradients()):
        if config.clip_norm:
            norm = math.sqrt(sum(float(np.sum(grad**2)) for grad in grads.values()))
            grads = {name: grad * min(1.0, config.clip_norm / max(norm, 1e-300)) for name, grad in grads.items()}
        for name, grad in grads.items():
            decay = config.weight_decay if name == "kernel" else 0.0
            params[name] = rule(params[name], grad, memory[name], k, decay)
    return params


def check(config, rule):
    found, expected = ours(config), by_hand(config, rule)
    for name in SHAPES:
        # The schedule is float32 by design: compare what it multiplies, to its rounding.
        np.testing.assert_allclose(found[name], expected[name], rtol=FLOAT64, atol=FLOAT64, err_msg=name)


# A power of two, exact in float32, so that the comparison stays at float64.
RATE = 2.0**-6


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.25, "clip_norm": 1.0}, {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}]
)
def test_adamw(options):
    config = OptimizerConfig(optimizer="adamw", learning_rate=RATE, **options)

    def rule(param, grad, memory, k, decay):
        memory["m"] = config.beta1 * memory.get("m", 0) + (1 - config.beta1) * grad
        memory["v"] = config.beta2 * memory.get("v", 0) + (1 - config.beta2) * grad**2
        mean = memory["m"] / (1 - config.beta1 ** (k + 1))
        root = np.sqrt(memory["v"] / (1 - config.beta2 ** (k + 1)))
        return param * (1 - RATE * decay) - RATE * mean / (root + config.epsilon)

    check(config, rule)


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.25, "clip_norm": 1.0}, {"momentum": 0.9, "decay": 0.9, "epsilon": 1e-3}]
)
def test_rmsprop(options):
    config = OptimizerConfig(optimizer="rmsprop", learning_rate=RATE, **options)

    def rule(param, grad, memory, k, decay):
        grad = grad + decay * param
        memory["v"] = config.decay * memory.get("v", 0) + (1 - config.decay) * grad**2
        memory["b"] = config.momentum * memory.get("b", 0) + grad / (np.sqrt(memory["v"]) + config.epsilon)
        return param - RATE * memory["b"]

    check(config, rule)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.25, "clip_norm": 0.5}])
def test_sgd(options):
    config = OptimizerConfig(optimizer="sgd", learning_rate=RATE, **options)

    def rule(param, grad, memory, k, decay):
        memory["b"] = config.momentum * memory.get("b", 0) + grad + decay * param
        return param - RATE * memory["b"]

    check(config, rule)


def test_epsilon_inside_the_root_would_be_another_number():
    """The comparison above can fail: with gradients of 1e-6 the two conventions differ by far more."""
    inside = optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=True)
    outside, _ = make_optimizer(OptimizerConfig(optimizer="rmsprop", learning_rate=1.0), 1)
    grads = {"w": jnp.full((2,), 1e-6)}
    params = {"w": jnp.zeros(2)}
    there, _ = inside.update(grads, inside.init(params), params)
    here, _ = outside.update(grads, outside.init(params), params)
    assert float(jnp.abs(here["w"] + there["w"]).max()) > 1


def test_decay_leaves_norms_and_biases_alone():
    params = {
        "embed": {"tokens": np.zeros((8, 4))},
        "stacks": {
            "0": {
                "attention": {"query": np.zeros((2, 4, 2, 2)), "query_bias": np.zeros((2, 2, 2))},
                "norm_1": {"scale": np.zeros((2, 4))},
            }
        },
        "final_norm": {"scale": np.zeros(4), "bias": np.zeros(4)},
    }
    assert decay_mask(params) == {
        "embed": {"tokens": True},
        "stacks": {"0": {"attention": {"query": True, "query_bias": False}, "norm_1": {"scale": False}}},
        "final_norm": {"scale": False, "bias": False},
    }


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_schedules(kind, warmup, final):
    peak, total = 0.5, 20
    fraction = {} if kind == "constant" else {"final_fraction": final}
    schedule = make_schedule(OptimizerConfig(learning_rate=peak, schedule=kind, warmup_steps=warmup, **fraction), total)
    for k in range(total + 3):
        t = min(max((k - warmup) / (total - warmup), 0), 1)
        shape = {
            "constant": 1.0,
            "linear": final + (1 - final) * (1 - t),
            "cosine": final + (1 - final) * (1 + math.cos(math.pi * t)) / 2,
        }[kind]
        expected = peak * (k + 1) / warmup if k < warmup else peak * shape
        assert float(schedule(k)) == pytest.approx(expected, rel=1e-6, abs=1e-7), k


def test_the_first_update_is_never_wasted():
    assert float(make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=150), 1000)(0)) == pytest.approx(1 / 150)


def test_the_schedule_drives_the_update():
    config = OptimizerConfig(optimizer="sgd", learning_rate=1.0, schedule="linear", warmup_steps=2)
    optimizer, schedule = make_optimizer(config, 4)
    params = {"w": jnp.zeros(())}
    state = optimizer.init(params)
    for k in range(5):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        assert float(updates["w"]) == -float(schedule(k))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"optimizer": "lion"}, "--optimizer lion"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"schedule": "step"}, "--schedule step"),
        ({"warmup_steps": -1}, "--warmup-steps"),
        ({"final_fraction": 2.0}, "--final-fraction"),
        ({"clip_norm": -1.0}, "--clip-norm"),
        ({"beta1": 3.0}, "--beta1"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"momentum": 0.5}, "--momentum: not read by --optimizer adamw"),
        ({"optimizer": "rmsprop", "beta2": 0.95}, "--beta2: not read by --optimizer rmsprop"),
        ({"optimizer": "sgd", "state_dtype": "bfloat16"}, "--state-dtype: --optimizer sgd has no state"),
        ({"final_fraction": 0.5}, "--final-fraction: not read by --schedule constant"),
    ],
)
def test_bad_numbers_are_named(options, flag):
    with pytest.raises(InputError) as caught:
        make_optimizer(OptimizerConfig(**options), 10)
    assert flag in str(caught.value)
