"""Judges: who says which of two outputs is better, what they are asked, and where their verdicts are kept.

Here live an endpoint, a local model (by likelihood, or by what it writes) and a reward behind the one protocol
``Judge``, the prompts as data files, and the cache of verdicts. What may not live here: what verdicts add up to (win
rates, agreement), people's page, training.
"""

from jaxalign.evaluation._comparison import Comparison, Judge, Preference, Verdict
from jaxalign.evaluation._wins import Outcome
from jaxalign.evaluation.judges._answer import read_answer
from jaxalign.evaluation.judges._cache import VerdictCache
from jaxalign.evaluation.judges._compare import Item, Judged, compare, judged_so_far, shown
from jaxalign.evaluation.judges._endpoint import AllRefused, EndpointConfig, EndpointError, OpenAIJudge, Usage
from jaxalign.evaluation.judges._likelihood import LikelihoodJudge
from jaxalign.evaluation.judges._prompts import BUILT_IN_PROMPTS, AnswerForm, JudgePrompts, load_prompts
from jaxalign.evaluation.judges._reward import RewardJudge
from jaxalign.evaluation.judges._sampled import SampledJudge

__all__ = [
    "BUILT_IN_PROMPTS",
    "AllRefused",
    "AnswerForm",
    "Comparison",
    "EndpointConfig",
    "EndpointError",
    "Item",
    "Judge",
    "JudgePrompts",
    "Judged",
    "LikelihoodJudge",
    "OpenAIJudge",
    "Outcome",
    "Preference",
    "RewardJudge",
    "SampledJudge",
    "Usage",
    "Verdict",
    "VerdictCache",
    "compare",
    "judged_so_far",
    "load_prompts",
    "read_answer",
    "shown",
]
