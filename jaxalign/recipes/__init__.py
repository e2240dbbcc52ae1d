"""Methods as recipes: a config, a batch builder, a loss. Each file is short; what they share stands here once.

No numerics of a loss (jaxalign.losses), no train step (jaxalign.training); no token or mask is made here
(jaxalign.data). In a notebook: ``fit`` with an objective; from the shell: ``sft.run``, ``dpo.run`` and so on.
"""

from jaxalign.recipes import collect, dpo, hindsight, ppo, reward_model, sft
from jaxalign.recipes._cached import attach_reference_log_probs, attach_trunk, example_log_probs, example_scores
from jaxalign.recipes._collect import Collected, collect_preferences
from jaxalign.recipes._collection import CollectSettings
from jaxalign.recipes._config import FitConfig, FolderConfig, RunConfig, TrainConfig
from jaxalign.recipes._fit import FitResult, fit
from jaxalign.recipes._fit_data import Pretraining
from jaxalign.recipes._hindsight import HindsightObjective, hindsight_objective
from jaxalign.recipes._hindsight_sampling import sample_with_feedback
from jaxalign.recipes._likelihood import likelihood_objective
from jaxalign.recipes._likelihood_margins import likelihood_margins
from jaxalign.recipes._objective import Objective
from jaxalign.recipes._pairs import pair_metrics, preference_objective
from jaxalign.recipes._ppo import PPOResult, fit_ppo
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._preference import LOSSES, PreferenceObjective
from jaxalign.recipes._raters import identity_of, load_text_reward
from jaxalign.recipes._reward import RewardObjective, reward_objective
from jaxalign.recipes._reward_rater import RewardModelReward
from jaxalign.recipes._run import load_tokenizer
from jaxalign.recipes._scores import PairScores, pair_scores, score_targets, sequence_scores
from jaxalign.recipes.collect import CollectConfig
from jaxalign.recipes.dpo import DPOConfig
from jaxalign.recipes.hindsight import HindsightConfig
from jaxalign.recipes.ppo import PPOConfig
from jaxalign.recipes.reward_model import RewardModelConfig
from jaxalign.recipes.sft import SFTConfig

__all__ = [
    "LOSSES",
    "CollectConfig",
    "CollectSettings",
    "Collected",
    "DPOConfig",
    "FitConfig",
    "FitResult",
    "FolderConfig",
    "HindsightConfig",
    "HindsightObjective",
    "Objective",
    "PPOConfig",
    "PPOFitConfig",
    "PPOResult",
    "PairScores",
    "PreferenceObjective",
    "Pretraining",
    "RewardModelConfig",
    "RewardModelReward",
    "RewardObjective",
    "RunConfig",
    "SFTConfig",
    "TrainConfig",
    "attach_reference_log_probs",
    "attach_trunk",
    "collect",
    "collect_preferences",
    "dpo",
    "example_log_probs",
    "example_scores",
    "fit",
    "fit_ppo",
    "hindsight",
    "hindsight_objective",
    "identity_of",
    "likelihood_margins",
    "likelihood_objective",
    "load_text_reward",
    "load_tokenizer",
    "pair_metrics",
    "pair_scores",
    "ppo",
    "preference_objective",
    "reward_model",
    "reward_objective",
    "sample_with_feedback",
    "score_targets",
    "sequence_scores",
    "sft",
]
