"""Losses: arrays in, arrays out, unreduced, at least float32.

Here live the token, pair, unpaired and reward losses, the log-probabilities they take, and the masked reductions that
sum them. Imports jax and nothing of ours: no parameters, no files, no flags; random
numbers come of a key that is an argument.
"""

from jaxalign.losses._advantages import generalised_advantages, kl_penalised_rewards, missing_eos_scores
from jaxalign.losses._divergence import (
    alpha_divergence_ratio,
    divergence_ratio,
    forward_kl_ratio,
    jensen_shannon_ratio,
    reverse_kl_ratio,
)
from jaxalign.losses._entropy import fused_token_entropy
from jaxalign.losses._fused import fused_token_log_probs
from jaxalign.losses._hindsight import chain_of_hindsight, forgetful_causal_mask
from jaxalign.losses._policy_gradient import (
    adaptive_kl_coefficient,
    ppo_clipped,
    ppo_policy,
    ppo_value,
    ppo_value_clipped,
)
from jaxalign.losses._preference import dpo, hinge, implicit_reward, ipo, robust_dpo, unweighted_dpo
from jaxalign.losses._reductions import masked_mean, masked_sum, masked_var, whiten
from jaxalign.losses._reference_free import orpo, simpo, wpo_weights
from jaxalign.losses._reward import bradley_terry, partial_plackett_luce, plackett_luce, reward_centering
from jaxalign.losses._sorted import aot, aot_unpaired
from jaxalign.losses._tokens import (
    cross_entropy,
    kl_estimate,
    length_desensitised_weights,
    sequence_log_prob,
    token_log_probs,
    unlikelihood,
)
from jaxalign.losses._unpaired import bco, bco_shift, kto, kto_reference_kl
from jaxalign.losses._variants import apo_down, apo_zero, discopop, exo, nca, sppo_hard

__all__ = [
    "adaptive_kl_coefficient",
    "alpha_divergence_ratio",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_shift",
    "bradley_terry",
    "chain_of_hindsight",
    "cross_entropy",
    "discopop",
    "divergence_ratio",
    "dpo",
    "exo",
    "forgetful_causal_mask",
    "forward_kl_ratio",
    "fused_token_entropy",
    "fused_token_log_probs",
    "generalised_advantages",
    "hinge",
    "implicit_reward",
    "ipo",
    "jensen_shannon_ratio",
    "kl_estimate",
    "kl_penalised_rewards",
    "kto",
    "kto_reference_kl",
    "length_desensitised_weights",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "missing_eos_scores",
    "nca",
    "orpo",
    "partial_plackett_luce",
    "plackett_luce",
    "ppo_clipped",
    "ppo_policy",
    "ppo_value",
    "ppo_value_clipped",
    "reverse_kl_ratio",
    "reward_centering",
    "robust_dpo",
    "sequence_log_prob",
    "simpo",
    "sppo_hard",
    "token_log_probs",
    "unlikelihood",
    "unweighted_dpo",
    "whiten",
    "wpo_weights",
]
