"""Who compares what, in which order, which way round: pure functions of a seed, so that anybody can check them."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

__all__ = ["choose", "is_flipped", "plan", "rater_order"]


def _draw(seed: int, *parts: str | int) -> int:
    """64 bits, uniform, the same on every machine: of SHA-256 over the seed and what it is drawn for."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()[:8])


def is_flipped(seed: int, rater: str, pair: int) -> bool:
    """Whether this rater sees the pair's second output first: a fair coin for each rater and pair."""
    return bool(_draw(seed, "flip", rater, pair) & 1)


def rater_order(seed: int, rater: str, pairs: Collection[int]) -> list[int]:
    """The pairs in the order in which this rater gets them."""
    return sorted(pairs, key=lambda pair: _draw(seed, "order", rater, pair))


def plan(seed: int, pairs: int, raters: Sequence[str], ratings_per_item: int | None) -> dict[str, list[int]]:
    """Pairs ``0 .. pairs - 1`` dealt to raters who are known beforehand; each list is in the rater's own order.

    Every pair goes to ``ratings_per_item`` different raters (None: to all), and no rater gets over one pair more than
    another. Who shares pairs with whom is drawn, so that agreement is measured between all of them.
    """
    if ratings_per_item is None:
        return {rater: rater_order(seed, rater, range(pairs)) for rater in raters}
    hands: dict[str, list[int]] = {rater: [] for rater in raters}
    for pair in sorted(range(pairs), key=lambda pair: _draw(seed, "deal", pair)):
        # Those with least first: loads then never differ by more than one.
        waiting = sorted(raters, key=lambda rater: (len(hands[rater]), _draw(seed, "hand", rater, pair)))
        for rater in waiting[:ratings_per_item]:
            hands[rater].append(pair)
    return {rater: rater_order(seed, rater, hand) for rater, hand in hands.items()}


def choose(
    seed: int, rater: str, pairs: int, given: Mapping[int, int], own: Collection[int], ratings_per_item: int
) -> int | None:
    """The next pair of a rater who came by himself, or None where nothing is left for him.

    Of the pairs that fewer than ``ratings_per_item`` have (``given``: pair -> how many), and this rater has not
    (``own``), one that fewest have; ties are drawn.
    """
    left = [pair for pair in range(pairs) if given.get(pair, 0) < ratings_per_item and pair not in own]
    return min(left, key=lambda pair: (given.get(pair, 0), _draw(seed, "order", rater, pair)), default=None)
