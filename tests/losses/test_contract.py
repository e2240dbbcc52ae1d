"""Every loss against the public suite, its closed form, and chex's variants of compilation and placement."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxalign import losses
from jaxalign.testing import check_loss
from tests.losses.table import CASES, Case
from tests.tolerances import FLOAT32, FLOAT64

# Reductions, weights, statistics and the fused form have tests of their own.
ELSEWHERE = {
    "adaptive_kl_coefficient",
    "bco_shift",
    "chain_of_hindsight",
    "forgetful_causal_mask",
    "fused_token_entropy",
    "fused_token_log_probs",
    "generalised_advantages",
    "kl_penalised_rewards",
    "kto_reference_kl",
    "length_desensitised_weights",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "missing_eos_scores",
    "partial_plackett_luce",
    "ppo_clipped",
    "ppo_policy",
    "ppo_value",
    "ppo_value_clipped",
    "whiten",
    "wpo_weights",
}
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_the_table_has_every_loss() -> None:
    assert {case.name.split("-")[0] for case in CASES} == set(losses.__all__) - ELSEWHERE


@by_name
def test_contract(case: Case) -> None:
    check_loss(case.loss, inputs=case.inputs, modes=("fwd", "rev"), **case.check)


@by_name
def test_closed_form(case: Case) -> None:
    with jax.enable_x64(True):
        value = case.loss(*(jnp.asarray(array) for array in case.inputs))
    np.testing.assert_allclose(value, case.closed_form(*case.inputs), rtol=FLOAT64, atol=FLOAT64)


@by_name
def test_integers_are_refused(case: Case) -> None:
    inputs = [array.astype(np.int32) if array.dtype == np.float64 else array for array in case.inputs]
    with pytest.raises(AssertionError):
        case.loss(*inputs)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.inputs) > 1], ids=lambda case: case.name)
def test_shapes_that_differ_are_refused(case: Case) -> None:
    with pytest.raises(AssertionError):
        case.loss(case.inputs[0].astype(np.float32), *(array[:1] for array in case.inputs[1:]))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True, with_pmap=False)
    @parameterized.named_parameters((case.name, case) for case in CASES)
    def test_variants(self, case: Case) -> None:
        inputs = [array.astype(np.float32) if array.dtype == np.float64 else array for array in case.inputs]
        value = self.variant(case.loss)(*inputs)
        np.testing.assert_allclose(value, case.closed_form(*case.inputs), rtol=FLOAT32, atol=FLOAT32)
