"""Judged pairs: reading them, rates by setting, the papers' tables in their layout, figures read back."""

import csv
import io

import numpy as np
import pytest

from jaxalign.data import load_records
from jaxalign.errors import InputError
from jaxalign.evaluation import (
    JudgedPair,
    PValue,
    csv_table,
    judge_agreement_rows,
    latex_table,
    markdown_table,
    paired_test_rows,
    pairwise_rows,
    plot_pairwise,
    plot_win_rate,
    read_judged,
    win_rate_points,
    win_rate_rows,
)
from tests.tolerances import COVERAGE, FLOAT64


def judged(outcomes, **options):
    """A pair a prompt; ours has two words more at every other prompt."""
    return [
        JudgedPair(prompt=f"p{i}", ours="a b" + " c d" * (i % 2), theirs="a b", outcome=outcome, **options)
        for i, outcome in enumerate(outcomes)
    ]


def spread(win, tie, lose):
    return ["win"] * win + ["tie"] * tie + ["lose"] * lose


def test_lines_are_read_with_what_they_leave_out(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(
        '{"prompt": "a", "ours": "b", "theirs": "c", "outcome": "win", "seconds": 3}\n'
        '{"prompt": [{"role": "user", "content": "é"}], "ours": "b", "theirs": "c", "outcome": "tie",'
        ' "axis": "accuracy", "method": "DPO", "against": "SFT", "judge": "j", "temperature": 1, "step": 20.0}\n'
    )
    first, second = read_judged(load_records(path))
    assert first == JudgedPair(prompt="a", ours="b", theirs="c", outcome="win")
    assert second.prompt == "User: é"  # as a judge was shown it
    assert (second.axis, second.method, second.against, second.judge) == ("accuracy", "DPO", "SFT", "j")
    assert (second.temperature, second.step) == (1.0, 20)
    rows = [{"prompt": "a", "ours": "b", "theirs": "c", "outcome": "win", "names": ["DPO", "PPO"]}]
    (named,) = read_judged([*rows], judge="S")
    assert (named.method, named.against, named.judge) == ("DPO", "PPO", "S")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": None}, "row 1: missing field 'outcome'"),
        ({"outcome": "won"}, "row 1: field 'outcome' is 'won', must be one of win, tie, lose, invalid"),
        ({"ours": 3}, "row 1: field 'ours' is a int, not a string"),
        ({"temperature": "hot"}, "row 1: field 'temperature' is 'hot', no number"),
        ({"method": "D\u202ePO"}, "row 1: field 'method' is .*: a name must be printable"),
        ({"names": "DPO"}, "row 1: field 'names' is 'DPO', not two names"),
        ({"names": ["DPO", 3]}, "row 1: field 'against' is a int, not a string"),
        ({"prompt": [{"role": "user"}]}, "row 1: field 'prompt': a message needs 'role' and 'content', both text"),
        ({"step": 1.5}, "row 1: field 'step' is 1.5, no whole number"),
    ],
)
def test_a_bad_line_is_named(change, message):
    with pytest.raises(InputError, match=message):
        read_judged([{"prompt": "a", "ours": "b", "theirs": "c", "outcome": "win"} | change])


def test_the_coh_papers_first_table_in_its_layout():
    """A thousand verdicts an axis with the paper's shares of CoH against its base model (Liu et al. 2023, table 1)."""
    published = {"accuracy": (24.5, 26.8, 48.7), "coherence": (15.6, 18.5, 65.9), "coverage": (19.6, 22.4, 58.0)}
    pairs = []
    for axis, (base, tie, coh) in published.items():
        outcomes = spread(round(10 * coh), round(10 * tie), round(10 * base))
        pairs += judged(outcomes, axis=axis, method="CoH", against="Base")
    rows = pairwise_rows([*pairs, *judged(["invalid"] * 3, axis="accuracy", method="CoH", against="Base")])
    assert [row["axis"] for row in rows] == ["accuracy", "coherence", "coverage", "average"]
    assert [str(rows[-1][name]) for name in ("win", "tie", "lose")] == ["57.5", "22.6", "19.9"]
    # The paper rounds its averages before it subtracts.
    assert [round(row["delta"].value.estimate, 1) for row in rows] == [24.2, 50.3, 38.4, 37.6]
    assert [(row["judged"], row["invalid"]) for row in rows] == [(1000, 3), (1000, 0), (1000, 0), (3000, 3)]
    lines = markdown_table(rows).splitlines()
    assert lines[0] == "| method | against | axis | win | tie | lose | delta | judged | invalid |"
    assert lines[2].startswith("| CoH | Base | accuracy | 48.7 | 26.8 | 24.5 | 24.2 [")
    parsed = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert float(parsed[0]["delta"]) == pytest.approx(24.2, abs=FLOAT64)
    assert float(parsed[0]["delta low"]) < 24.2 < float(parsed[0]["delta high"])
    latex = latex_table(rows, caption="100 % of CoH & Base", label="tab:coh").splitlines()
    assert latex[0] == r"\begin{table}"
    assert r"\begin{tabular}{lllrrrrrr}" in latex
    assert any(line.startswith(r"CoH & Base & accuracy & 48.7 & 26.8 & 24.5 & 24.2 [") for line in latex)
    assert latex[-3:] == [r"\caption{100 \% of CoH \& Base}", r"\label{tab:coh}", r"\end{table}"]


def test_latex_is_told_apart_from_text():
    rows = [{"[a]": "50 % & $x_1$ {b} \\cmd ~^#\nend", "n": 2}, {"[a]": "[1, 2]", "n": None}]
    assert latex_table(rows) == (
        "\\begin{tabular}{lr}\n\\toprule\n"
        "{}[a] & n \\\\\n\\midrule\n"
        "50 \\% \\& \\$x\\_1\\$ \\{b\\} \\textbackslash{}cmd \\textasciitilde{}\\textasciicircum{}\\# end & 2 \\\\\n"
        "{}[1, 2] &  \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def test_the_interval_of_the_average_knows_that_axes_share_prompts():
    """Axes that always agree add nothing: the average is as uncertain as one of them; independent ones halve it."""
    generator = np.random.default_rng(0)
    words = np.array(["win", "lose"])
    one = words[generator.integers(0, 2, 200)].tolist()
    same = [pair for axis in "abcd" for pair in judged(one, axis=axis)]
    other = [pair for axis in "abcd" for pair in judged(words[generator.integers(0, 2, 200)].tolist(), axis=axis)]

    def width(row):
        return row["delta"].value.high - row["delta"].value.low

    *single, average = pairwise_rows(same)
    assert width(average) == pytest.approx(width(single[0]), rel=FLOAT64)
    *single, average = pairwise_rows(other)
    assert width(average) < 0.6 * width(single[0])


def test_the_interval_of_the_average_covers():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(1000):
        pairs = []
        easy = generator.random(60)
        for axis, shift in (("a", 0.0), ("b", 0.2)):
            won = generator.random(60) < 0.6 * easy + 0.1 + shift
            pairs += judged(["win" if one else "lose" for one in won], axis=axis)
        delta = pairwise_rows(pairs, resamples=200, seed=seed)[-1]["delta"].value
        hits += delta.low <= 100 * (2 * (0.3 + 0.1 + 0.1) - 1) <= delta.high
    assert abs(hits / 1000 - 0.95) < COVERAGE


def test_one_prompt_has_no_interval_and_nothing_judged_no_row():
    rows = pairwise_rows([*judged(["win"]), *judged(["invalid"], axis="other")])
    assert [(row["axis"], row["delta"].share) for row in rows] == [("overall", 1.0)]
    assert pairwise_rows([]) == []


def over_temperature():
    shares = {("DPO", 0.0): (14, 2, 4), ("DPO", 1.0): (11, 1, 8), ("PPO", 0.0): (11, 3, 6), ("PPO", 1.0): (2, 2, 16)}
    return [
        pair
        for (method, temperature), counts in shares.items()
        for pair in judged(spread(*counts), method=method, against="human", temperature=temperature)
    ]


def test_rates_by_setting():
    points = win_rate_points(over_temperature())
    assert [(point.method, point.temperature, point.wins.rate) for point in points] == [
        ("DPO", 0.0, 0.75), ("DPO", 1.0, 0.575), ("PPO", 0.0, 0.625), ("PPO", 1.0, 0.15),
    ]  # fmt: skip
    assert all(point.length_controlled is not None for point in points)
    rows = win_rate_rows(points)
    assert list(rows[0]) == [
        "method", "against", "temperature", "win rate %", "at equal length %", "wins", "ties", "losses", "invalid",
    ]  # fmt: skip
    assert rows[0]["temperature"] == "0"
    assert str(rows[0]["win rate %"]).startswith("75.0 [")
    assert win_rate_points(judged(["tie", "invalid"]), ties="exclude") == []
    assert win_rate_points(judged(["win"]))[0].length_controlled is None


def test_methods_are_tested_on_the_prompts_they_share():
    rows = paired_test_rows(over_temperature())
    assert [(row["temperature"], row["first"], row["second"], row["prompts"]) for row in rows] == [
        ("0", "DPO", "PPO", 20), ("1", "DPO", "PPO", 20),
    ]  # fmt: skip
    assert rows[1]["difference %"].value.estimate == pytest.approx(42.5, abs=FLOAT64)
    assert rows[1]["Holm p"].value < 0.01
    assert str(rows[1]["Holm p"]) == f"{rows[1]['Holm p'].value:.3f}"
    assert str(PValue(0.0002)) == "< 0.001"
    few = judged(["lose", "lose", "win"], method="SFT", against="human", temperature=0.0)
    more = paired_test_rows([*over_temperature(), *few])  # which shares three prompts takes none from the others
    assert [(row["first"], row["second"], row["prompts"]) for row in more] == [
        ("DPO", "PPO", 20), ("DPO", "SFT", 3), ("PPO", "SFT", 3), ("DPO", "PPO", 20),
    ]  # fmt: skip
    lowest = min(more[:3], key=lambda row: row["permutation p"].value)
    assert lowest["Holm p"].value == pytest.approx(min(1, 3 * lowest["permutation p"].value), abs=FLOAT64)
    twice = [*over_temperature(), *over_temperature()]
    assert paired_test_rows(twice) == []  # several verdicts of a prompt are not independent


def test_judges_are_compared_on_what_both_judged():
    pairs = judged(["win", "win", "lose", "tie", "invalid"], judge="a") + judged(["win", "lose", "lose"], judge="b")
    (row,) = judge_agreement_rows(pairs)
    assert (row["first"], row["second"], row["comparisons"]) == ("a", "b", 3)
    assert row["agreement %"].share.estimate == pytest.approx(2 / 3, abs=FLOAT64)
    assert row["kappa"].estimate == pytest.approx(0.4, abs=FLOAT64)  # p_o = 2/3, p_e = 4/9
    alike = judged(["win", "win"], judge="a") + judged(["win", "win"], judge="b")
    assert judge_agreement_rows(alike)[0]["kappa"] is None


def test_the_figure_over_temperature_has_every_rate_and_its_interval():
    points = win_rate_points(over_temperature())
    (axes,) = plot_win_rate(points[::-1], over="temperature").axes
    assert axes.get_xlabel() == "sampling temperature"
    assert axes.get_ylabel() == "win rate against human, %"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["PPO", "DPO"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["DPO"].get_xydata(), [[0, 75], [1, 57.5]])
    for look in ("get_color", "get_marker"):  # apart in print too
        assert getattr(lines["DPO"], look)() != getattr(lines["PPO"], look)()
    (bars,) = axes.containers[1].lines[2]  # of DPO, the second to appear
    found = [point.wins.interval for point in points[:2]]
    ends = [[100 * one.low, 100 * one.high] for one in found]
    np.testing.assert_allclose(np.array(bars.get_segments())[:, :, 1], ends)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    with pytest.raises(InputError, match="no win rate has a step"):
        plot_win_rate(points, over="step")


def test_the_figure_over_training_parts_what_differs_besides():
    pairs = [
        pair
        for step in (10, 20)
        for axis in ("helpful", "harmless")
        for pair in judged(spread(3, 1, 2), method="DPO", against="chosen", step=step, axis=axis)
    ]
    (axes,) = plot_win_rate(win_rate_points(pairs), over="step").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DPO, helpful", "DPO, harmless"]
    assert axes.get_xlabel() == "training step"
    first, second = (line for line in axes.get_lines() if line.get_label().startswith("DPO"))
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_bars_add_up_to_a_hundred():
    rows = pairwise_rows(judged(spread(6, 1, 3), axis="a") + judged(spread(1, 4, 5), axis="b"))
    (axes,) = plot_pairwise(rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "average"]
    widths = {container.get_label(): [bar.get_width() for bar in container] for container in axes.containers}
    np.testing.assert_allclose(widths["win"], [60, 10, 35])
    np.testing.assert_allclose(np.sum(list(widths.values()), axis=0), 100)
    heights = [bar.get_y() for bar in axes.containers[0]]
    assert heights == sorted(heights, reverse=True)  # the first row at the top
    with pytest.raises(InputError, match="no rows"):
        plot_pairwise([])
