"""Text from a model, and what it is worth: the jitted sampler, best-of-N, classifiers as rewards.

Takes a config, a parameter tree and token ids; knows nothing of losses, training or text files. Rewards enter only as
functions from texts to numbers.
"""

from jaxalign.sampling._ahead import SamplerMemory, sampler_memory
from jaxalign.sampling._best_of_n import best_of, best_of_n, best_of_n_kl_bound
from jaxalign.sampling._classifier import ClassifierReward, TruncationPolicy, classifier_reward
from jaxalign.sampling._generate import generate
from jaxalign.sampling._pairwise import TextJudge, compare_texts
from jaxalign.sampling._samples import Samples
from jaxalign.sampling._text_reward import TextReward, score_texts

__all__ = [
    "ClassifierReward",
    "SamplerMemory",
    "Samples",
    "TextJudge",
    "TextReward",
    "TruncationPolicy",
    "best_of",
    "best_of_n",
    "best_of_n_kl_bound",
    "classifier_reward",
    "compare_texts",
    "generate",
    "sampler_memory",
    "score_texts",
]
