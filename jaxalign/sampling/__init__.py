"""Text from a model, and what it is worth: the jitted sampler, best-of-N, classifiers as rewards.

Takes a config, a parameter tree and token ids; knows nothing of losses, training or text files. Rewards enter only as
functions from texts to numbers.
"""

from jaxalign.sampling._best_of_n import TextReward, best_of, best_of_n, best_of_n_kl_bound, score_texts
from jaxalign.sampling._classifier import ClassifierReward, classifier_reward
from jaxalign.sampling._generate import generate
from jaxalign.sampling._samples import Samples

__all__ = [
    "ClassifierReward",
    "Samples",
    "TextReward",
    "best_of",
    "best_of_n",
    "best_of_n_kl_bound",
    "classifier_reward",
    "generate",
    "score_texts",
]
