"""Tables of judged pairs: win, tie, lose and their difference by axis; methods against each other; judges."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxalign.evaluation._agreement import agreement_between, agreement_within, cohen_kappa, krippendorff_alpha
from jaxalign.evaluation._bootstrap import Interval, interval_of, resampled_means
from jaxalign.evaluation._judged import JudgedPair, Setting, by_setting, setting_cells
from jaxalign.evaluation._paired_wins import adjusted, paired_test
from jaxalign.evaluation._tables import Percent, PValue
from jaxalign.evaluation._wins import Outcome, TieRule, group_index, outcome_scores

__all__ = ["judge_agreement_rows", "paired_test_rows", "pairwise_rows"]

_DELTA: dict[Outcome, float] = {"win": 1.0, "tie": 0.0, "lose": -1.0, "invalid": 0.0}
AVERAGE = "average"


def pairwise_rows(
    pairs: Sequence[JudgedPair], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[dict[str, object]]:
    """Win, tie, lose and delta = win - lose in percent, a row an axis: the Chain of Hindsight paper's tables 1 and 2.

    Each (method, opponent, judge, temperature, step) has its axes one under another and, where there are several, their
    unweighted average. Percentages are of what was judged; invalid answers are counted beside. The interval of delta
    resamples prompts, for the average jointly over the axes.
    """
    groups: dict[Setting, dict[str, list[JudgedPair]]] = {}
    for setting, own in by_setting(pairs).items():
        if any(pair.outcome != "invalid" for pair in own):
            groups.setdefault(replace(setting, axis=""), {})[setting.axis] = own
    rows = []
    for setting, axes in groups.items():
        found = [_shares(own) for own in axes.values()]
        for name, own, shares in zip(axes, axes.values(), found, strict=True):
            delta = _delta({name: own}, level, resamples, seed)
            rows.append(_row(groups, setting, name, shares, delta, own))
        if len(axes) > 1:
            everything = [pair for own in axes.values() for pair in own]
            delta = _delta(axes, level, resamples, seed)
            rows.append(_row(groups, setting, AVERAGE, np.mean(found, axis=0), delta, everything))
    return rows


def paired_test_rows(pairs: Sequence[JudgedPair], *, ties: TieRule = "half", seed: int = 0) -> list[dict[str, object]]:
    """Every two methods that were judged on the same prompts against the same opponent: difference and exact tests.

    Every two are compared on all prompts that these two share; Holm's p is among the tests of one setting. Methods with
    several comparisons of a prompt are left out, as those are not independent, and so are two that share fewer than two
    judged prompts.
    """
    places: dict[Setting, dict[str, dict[str, Outcome]]] = {}
    for setting, own in by_setting(pairs).items():
        outcomes = {pair.prompt: pair.outcome for pair in own}
        if len(outcomes) == len(own):
            places.setdefault(replace(setting, method=""), {})[setting.method] = outcomes
    rows = []
    for setting, methods in places.items():
        tests = []
        for names in itertools.combinations(methods, 2):
            a, b = (methods[name] for name in names)
            shared = [prompt for prompt in a if prompt in b]
            first, second = [a[prompt] for prompt in shared], [b[prompt] for prompt in shared]
            kept = np.isfinite(outcome_scores(first, ties)) & np.isfinite(outcome_scores(second, ties))
            if kept.sum() > 1:
                tests.append(paired_test(first, second, names=names, ties=ties, seed=seed))
        for test in adjusted(tests):
            cells = setting_cells(list(places), setting)
            rows.append({
                **{name: value for name, value in cells.items() if name != "method"},
                "first": test.first,
                "second": test.second,
                "difference %": Percent(test.difference),
                "first better": test.first_better,
                "second better": test.second_better,
                "prompts": test.items,
                "sign test p": PValue(test.sign_p),
                "permutation p": PValue(test.permutation_p),
                "Holm p": PValue(test.holm_p),
            })  # fmt: skip
    return rows


def judge_agreement_rows(pairs: Sequence[JudgedPair], *, seed: int = 0) -> list[dict[str, object]]:
    """Every two judges of the same comparisons, and people among themselves: how often they say the same.

    The share of equal outcomes is over all pairs of a verdict of the one and a verdict of the other on one comparison;
    Cohen's kappa is there where each gave one; Krippendorff's alpha is of all their verdicts. Invalid answers are
    missing; intervals resample prompts. Judges that share fewer than two prompts have no row, and kappa and alpha stay
    empty where one outcome is all there was.
    """
    said: dict[str, dict[tuple[object, ...], list[Outcome]]] = {}
    for pair in pairs:
        if pair.outcome != "invalid":
            item = (pair.prompt, pair.ours, pair.theirs, Setting.of(replace(pair, judge="")))
            said.setdefault(pair.judge, {}).setdefault(item, []).append(pair.outcome)
    rows = []
    for first, second in itertools.combinations_with_replacement(said, 2):
        items = [item for item in said[first] if item in said[second]]
        if first == second:
            items = [item for item in items if len(said[first][item]) > 1]
        prompts = [item[0] for item in items]
        if len(set(prompts)) < 2:
            continue
        if first == second:
            together = [said[first][item] for item in items]
            share = agreement_within(together, groups=prompts, seed=seed)
        else:
            together = [said[first][item] + said[second][item] for item in items]
            every = [(label, said[second][item], item[0]) for item in items for label in said[first][item]]
            labels, others, groups = zip(*every, strict=True)
            share = agreement_between(labels, others, groups=groups, seed=seed)
        several = len({label for own in together for label in own}) > 1
        one_each = first != second and all(len(own) == 2 for own in together)
        kappa = alpha = None
        if several:
            alpha = krippendorff_alpha(together, groups=prompts, seed=seed)
        if several and one_each:
            kappa = cohen_kappa(*zip(*together, strict=True), groups=prompts, seed=seed)
        rows.append({
            "first": first, "second": second, "agreement %": Percent(share), "kappa": kappa, "alpha": alpha,
            "comparisons": len(items),
        })  # fmt: skip
    return rows


def _row(
    groups: dict[Setting, dict[str, list[JudgedPair]]],
    setting: Setting,
    axis: str,
    shares: np.ndarray,
    delta: Interval | float,
    own: Sequence[JudgedPair],
) -> dict[str, object]:
    win, tie, lose = (Percent(float(share)) for share in shares)
    invalid = sum(pair.outcome == "invalid" for pair in own)
    cells = {name: value for name, value in setting_cells(list(groups), setting).items() if name != "axis"}
    return {
        **cells, "axis": axis, "win": win, "tie": tie, "lose": lose, "delta": Percent(delta),
        "judged": len(own) - invalid, "invalid": invalid,
    }  # fmt: skip


def _shares(own: Sequence[JudgedPair]) -> np.ndarray:
    counts = Counter(pair.outcome for pair in own)
    judged = len(own) - counts["invalid"]
    return np.array([counts["win"], counts["tie"], counts["lose"]]) / judged


def _delta(axes: dict[str, list[JudgedPair]], level: float, resamples: int, seed: int) -> Interval | float:
    """The mean over axes of win - lose, prompts resampled; without interval of one prompt."""
    prompts = group_index([pair.prompt for own in axes.values() for pair in own])
    starts = np.cumsum([0, *map(len, axes.values())])
    columns = np.zeros((int(prompts.max()) + 1, 2 * len(axes)))
    for number, own in enumerate(axes.values()):
        index = prompts[starts[number] : starts[number + 1]]
        np.add.at(columns[:, 2 * number], index, [_DELTA[pair.outcome] for pair in own])
        np.add.at(columns[:, 2 * number + 1], index, [pair.outcome != "invalid" for pair in own])
    columns = columns[columns[:, 1::2].any(axis=1)]
    totals = columns.sum(axis=0)
    estimate = float((totals[::2] / totals[1::2]).mean())
    if len(columns) < 2:
        return estimate
    means = np.concatenate(list(resampled_means(columns, resamples=resamples, seed=seed)))
    means = means[(means[:, 1::2] > 0).all(axis=1)]  # an axis may have few prompts
    return interval_of(estimate, (means[:, ::2] / means[:, 1::2]).mean(axis=1), len(columns), level)
