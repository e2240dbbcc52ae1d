"""A reward as a judge: the completion with the larger score is preferred."""

from collections.abc import Callable, Sequence

from jaxalign.errors import InputError
from jaxalign.evaluation._comparison import Comparison, Verdict
from jaxalign.sampling import TextReward, score_texts

__all__ = ["RewardJudge"]


class RewardJudge:
    """Any text reward, ``f(prompts, completions) -> scores``: the larger score wins, equal scores are a tie.

    The axis of a comparison is not asked about: a reward knows one.
    """

    def __init__(self, reward: TextReward, *, name: str, version: str = "", batch_size: int = 256) -> None:
        """Make a judge of a reward.

        Args:
          reward: a reward model's, a classifier's, or any function.
          name: what tables and the cache call it.
          version: what tells it from others of that name. A function cannot be read: change this when it changes, or
            a cache gives its former verdicts.
          batch_size: comparisons whose texts are scored in one call, after which their verdicts are told.

        Raises:
          InputError: ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, is {batch_size}")
        self._reward, self._name, self._version, self._batch_size = reward, name, version, batch_size

    @property
    def name(self) -> str:
        """The reward's name."""
        return self._name

    @property
    def version(self) -> str:
        """As it was given."""
        return f"reward {self._version}".rstrip()

    def judge(self, comparisons: Sequence[Comparison], on_verdict: Callable[[int, Verdict], None]) -> None:
        """As ``Judge`` has it. Raises ``InputError`` as ``sampling.score_texts`` does."""
        for start in range(0, len(comparisons), self._batch_size):
            part = comparisons[start : start + self._batch_size]
            # Each text once: equal texts have equal scores, whatever a batch does to rounding.
            texts = dict.fromkeys((one.prompt, text) for one in part for text in (one.first, one.second))
            scores = score_texts(self._reward, [prompt for prompt, _ in texts], [text for _, text in texts])
            score = dict(zip(texts, scores.tolist(), strict=True))
            for offset, one in enumerate(part):
                first, second = score[one.prompt, one.first], score[one.prompt, one.second]
                on_verdict(
                    start + offset,
                    Verdict(
                        preference="tie" if first == second else "first" if first > second else "second",
                        text=f"rewards: first {first!r}, second {second!r}",
                    ),
                )
