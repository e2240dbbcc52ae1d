"""Agreement against worked examples of the literature and scikit-learn, intervals by simulation, the talk's table."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import (
    HumanStudy,
    Interval,
    JudgedPair,
    agreement_between,
    agreement_within,
    cohen_kappa,
    human_studies,
    human_study,
    human_study_rows,
    krippendorff_alpha,
    markdown_table,
)
from tests.tolerances import COVERAGE, COVERAGE_SKEWED, FLOAT64

# Krippendorff's "C" data: twelve units, four observers, seven values missing.
C_DATA = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
], dtype=object).T.tolist()  # fmt: skip


def test_krippendorffs_own_example():
    assert krippendorff_alpha(C_DATA).estimate == pytest.approx(0.743, abs=5e-4)


def test_his_example_of_two_observers_and_two_labels():
    """Ten units, six agreed: alpha = .095."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(list(zip(first, second, strict=True))).estimate == pytest.approx(0.095, abs=5e-4)


def test_order_of_raters_and_missing_labels_do_not_matter():
    mixed = [[label for label in item[::-1] if label is not None] for item in C_DATA]
    assert krippendorff_alpha(mixed) == krippendorff_alpha(C_DATA)


def test_cohens_kappa_by_hand():
    """Both yes 20, both no 15, yes-no 5, no-yes 10: p_o = .7, p_e = .5, kappa = .4."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    first, second = zip(*pairs, strict=True)
    found = cohen_kappa(first, second)
    assert found.estimate == pytest.approx(0.4, abs=FLOAT64)
    assert 0.05 < found.low < 0.4 < found.high < 0.7
    assert agreement_between(first, [[label] for label in second]).estimate == pytest.approx(0.7, abs=FLOAT64)


def test_cohens_kappa_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    first = generator.integers(0, 4, 90)
    second = np.where(generator.random(90) < 0.6, first, generator.integers(0, 4, 90))
    expected = metrics.cohen_kappa_score(first, second)
    gaps = [None, *first.tolist()], [3, *second.tolist()]  # what one of them left out does not count
    assert cohen_kappa(*gaps).estimate == pytest.approx(expected, abs=FLOAT64)


def test_perfect_and_opposite():
    assert cohen_kappa("abab", "abab").estimate == krippendorff_alpha(["aa", "bb", "aa"]).estimate == 1.0
    assert cohen_kappa("abab", "baba").estimate == -1.0
    assert agreement_within(["aa", "bb"]).high == 1.0


def test_agreement_by_hand():
    # The judge agrees with 2 of 3, none of 1 and 1 of 1; nobody rated the fourth, and it not the fifth.
    judge, people = ["win", "lose", "tie", "win", None], [["win", "win", "tie"], ["win"], ["tie"], [], ["win"]]
    assert agreement_between(judge, people).estimate == pytest.approx(3 / 5, abs=FLOAT64)
    # Of three people one pair of three agrees, of two the one pair; one alone says nothing.
    assert agreement_within([["win", "win", "tie"], ["win", None, "win"], ["win"]]).estimate == pytest.approx(2 / 4)


def raters(generator, items, people, *, right=0.8):
    truth = generator.integers(0, 3, (items, 1))
    return np.where(generator.random((items, people)) < right, truth, generator.integers(0, 3, (items, people)))


@pytest.mark.parametrize("measure", ["kappa", "alpha", "between", "within"])
def test_intervals_cover(measure):
    """Two raters that know the label with probability .8 and else guess: they agree beyond chance .8 * .8 times."""
    generator = np.random.default_rng(0)
    beyond = 0.8**2
    truth = beyond if measure in ("kappa", "alpha") else beyond + (1 - beyond) / 3
    hits = 0
    for seed in range(1000):
        labels = raters(generator, 120, 2 if measure == "kappa" else 3)
        options = {"resamples": 300, "seed": seed}
        if measure == "kappa":
            found = cohen_kappa(*labels.T.tolist(), **options)
        elif measure == "between":
            found = agreement_between(labels[:, 0].tolist(), labels[:, 1:].tolist(), **options)
        else:
            found = (krippendorff_alpha if measure == "alpha" else agreement_within)(labels.tolist(), **options)
        hits += found.low <= truth <= found.high
    assert abs(hits / 1000 - 0.95) < (COVERAGE_SKEWED if measure == "alpha" else COVERAGE)


@pytest.mark.parametrize("measure", [cohen_kappa, krippendorff_alpha, agreement_between, agreement_within])
def test_items_of_one_prompt_are_resampled_whole(measure):
    """Every item four times is no more evidence than once."""
    labels = raters(np.random.default_rng(1), 60, 2).tolist()
    first, second = [a for a, _ in labels], [b for _, b in labels]
    if measure is agreement_between:
        once, four = (first, [[b] for b in second]), (first * 4, [[b] for b in second] * 4)
    elif measure is cohen_kappa:
        once, four = (first, second), (first * 4, second * 4)
    else:
        once, four = (labels,), (labels * 4,)
    alone, grouped, naive = measure(*once), measure(*four, groups=list(range(60)) * 4), measure(*four)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.02)  # n - 1 in alpha
    assert naive.high - naive.low < 0.6 * (alone.high - alone.low)
    with pytest.raises(InputError, match="240 items but 1 groups"):
        measure(*four, groups=[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cohen_kappa("a", "ab"), "1 labels of the first rater but 2 of the second"),
        (lambda: cohen_kappa("a", "a"), "at least two items that two raters labelled, got 1"),
        (lambda: cohen_kappa("aa", "aa"), "agreement beyond chance is undefined"),
        (lambda: krippendorff_alpha([]), "got 0"),
        (lambda: krippendorff_alpha([["a", None], ["b"]]), "got 0"),
        (lambda: krippendorff_alpha(["aa", "aa"]), "undefined"),
        (lambda: agreement_between("ab", [["a"]]), "2 labels of the first rater but 1 items of the others"),
        (lambda: agreement_within([["a"], ["b"]]), "got 0"),
    ],
)  # fmt: skip
def test_what_has_no_agreement_is_one_clear_error(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_study_by_hand():
    humans = [["win", "win"], ["lose", "win"], ["win"], ["invalid", "lose"]]
    judges = {"S": ["win", "lose", "lose", "lose"], "C": ["win", "tie", "invalid", "lose"]}
    found = human_study("DPO", judges=judges, humans=humans, raters=5)
    assert (found.respondents, found.raters) == (6, 5)  # one of seven ratings is invalid
    assert found.human.estimate == pytest.approx(4 / 6, abs=FLOAT64)
    assert found.judges["S"].estimate == 0.25
    assert found.judges["C"].estimate == pytest.approx(1.5 / 3, abs=FLOAT64)
    assert found.judge_human["S"].estimate == pytest.approx(4 / 6, abs=FLOAT64)
    assert found.judge_human["C"].estimate == pytest.approx(3 / 5, abs=FLOAT64)
    assert found.human_human is not None
    assert found.human_human.estimate == 0.5
    with pytest.raises(InputError, match="judge S has 1 items, people have 4"):
        human_study("DPO", judges={"S": ["win"]}, humans=humans, raters=5)


def test_opponents_and_axes_are_columns_of_their_own():
    def pair(number, **options):
        return JudgedPair(prompt=f"p{number}", ours="a", theirs="b", method="DPO", **options)

    pairs = []
    for against in ("PPO", "SFT"):
        for number in range(3):
            pairs.append(pair(number, against=against, outcome="win", judge="people", rater="ann"))
            pairs.append(pair(number, against=against, outcome="win" if number else "lose", judge="S"))
    pairs.append(pair(9, against="Base", outcome="win", judge="people", rater="ann"))  # which no judge saw
    pairs += [pair(number, against="SFT", outcome="win", judge="T") for number in range(2)]
    first, second, third = human_studies(pairs)
    assert (first.method, second.method, third.method) == ("DPO against PPO", "DPO against SFT", "DPO against Base")
    assert [list(one.judges) for one in (first, second, third)] == [["S"], ["S", "T"], []]
    assert first.judge_human["S"].estimate == pytest.approx(2 / 3, abs=FLOAT64)
    assert (first.human.estimate, first.respondents, first.raters) == (1.0, 3, 1)
    assert human_studies([one for one in pairs if not one.rater]) == []
    unnamed = [replace(one, judge="") for one in pairs]  # people are told by their names
    assert human_studies(unnamed)[0].judge_human[""] == first.judge_human["S"]


def test_one_person_an_item_leaves_the_cell_empty():
    found = human_study("SFT", judges={"S": ["win", "lose"]}, humans=[["win"], ["win"]], raters=2)
    assert found.human_human is None
    last = human_study_rows([found])[-1]
    assert last == {"": "human-human agree", "SFT": None}
    assert markdown_table([last]).splitlines()[-1] == "| human-human agree |  |"


def test_the_published_table_in_its_layout():
    """The DPO paper's table 2, cell by cell."""

    def share(percent):
        return Interval(percent / 100, percent / 100, percent / 100)

    columns = {
        "DPO": (272, 47, 54, 58, 70, 67, 65),
        "SFT": (122, 27, 32, 43, 77, 79, None),
        "PPO-1": (199, 13, 12, 17, 86, 85, 87),
    }
    studies = [
        HumanStudy(
            name, {"S": share(s), "C": share(c)}, share(human), {"S": share(sh), "C": share(ch)},
            None if hh is None else share(hh), respondents,
        )
        for name, (respondents, s, c, human, sh, ch, hh) in columns.items()
    ]  # fmt: skip
    assert markdown_table(human_study_rows(studies, intervals=False)) == (
        "|  | DPO | SFT | PPO-1 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| N respondents | 272 | 122 | 199 |\n"
        "| judge (S) win % | 47 | 27 | 13 |\n"
        "| judge (C) win % | 54 | 32 | 12 |\n"
        "| human win % | 58 | 43 | 17 |\n"
        "| judge (S)-human agree | 70 | 77 | 86 |\n"
        "| judge (C)-human agree | 67 | 79 | 85 |\n"
        "| human-human agree | 65 |  | 87 |\n"
    )
    assert "58.0 [58.0, 58.0]" in markdown_table(human_study_rows(studies))
