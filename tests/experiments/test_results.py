"""Results of experiments: kept and read back, verdicts by interval and seeds, the page and the tables made of them."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import _results, report
from experiments._report_tables import readme_tables
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds, mean_over_seeds
from jaxalign import evaluation
from jaxalign.errors import InputError
from jaxalign.evaluation import Interval
from tests.markdown import ROOT
from tests.tolerances import COVERAGE


def claim(low, high, by_seed=(), **fields):
    found = Interval((low + high) / 2, low, high)
    return Claim(claim="A | B", source="paper", statistic="difference", found=found, by_seed=by_seed, **fields)


def result(folder, **fields):
    bars = {"a": Interval(1.0, 0.5, 1.5), "b": Interval(2.0, 1.0, 3.0)}
    evaluation.save_figure(evaluation.plot_intervals(bars, label="x"), folder / "curve")
    return Result(
        experiment="imdb", preset="mini", title="Sentiment <b>", setting="a model", judges={"S": "a scorer"}, seeds=3,
        seconds=90.0, values=[Value(what="win rate", paper="61 %", ours=Interval(0.5, 0.4, 0.6), seeds=3)],
        claims=[claim(0.1, 0.3, (0.1, 0.2)), claim(-0.3, -0.1, why="too small", decimals=2)],
        figures=[
            Figure(of="figure 2", caption="a curve", file="curve.svg", image="imdb.png"),
            Figure(of="", caption="the same", file="curve.svg"),
        ],
        tables=[
            Table(of="table 2", caption="kept rows", rows=[{"b": 1}], shown=True),
            Table(of="table 1", caption="rows", rows=[{"win": evaluation.Percent(0.25), "n": 3, "x": 0.12345}]),
        ],
        remarks=["One thing."],
        **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "by_seed", "verdict"),
    [
        ((0.1, 0.3), (), "holds"),
        ((0.1, 0.3), (0.2, 0.1), "holds"),
        ((0.1, 0.3), (0.2, -0.1), "undecided"),
        ((0.1, 0.3), (0.2,), "undecided"),  # one seed
        ((-0.1, 0.3), (0.2, 0.1), "undecided"),
        ((-0.3, -0.1), (-0.2, -0.1), "reversed"),
        ((-0.3, -0.1), (-0.2, 0.1), "undecided"),
    ],
)
def test_a_verdict_takes_interval_and_seeds(found, by_seed, verdict):
    assert claim(*found, by_seed).verdict == verdict


@pytest.mark.parametrize(
    ("found", "by_seed", "reason"),
    [
        ((0.1, 0.3), (), "why"),
        ((0.1, 0.3), (0.2,), "one seed decides nothing; why"),
        ((-0.1, 0.3), (0.2, 0.1), "the interval holds 0; why"),
        ((0.1, 0.3), (0.2, -0.1), "the seeds lie on both sides of 0; why"),
    ],
)
def test_what_keeps_a_claim_undecided_is_said(found, by_seed, reason):
    assert claim(*found, by_seed, why="why").reason == reason
    assert claim(*found, by_seed).reason == reason.removesuffix("why").removesuffix("; ")


def test_what_no_number_can_decide():
    found = claim(0.1, 0.3, (0.1, 0.2), undecidable="no person was asked", why="why")
    assert (found.verdict, found.reason) == ("undecided", "no person was asked; why")


def test_differences_over_seeds():
    items = np.random.default_rng(0).normal(0, 1, 400)
    alike, by_seed = difference_over_seeds([items + 0.5] * 3, [items] * 3)
    np.testing.assert_allclose(by_seed, [0.5] * 3)
    np.testing.assert_allclose([alike.low, alike.high], [0.5, 0.5])  # neither seeds nor items differ in it
    # By hand: seeds at 0, .5 and 1 have variance 1/4, over three seeds 1/12, with two degrees of freedom.
    apart, _ = difference_over_seeds(items + np.array([[0.0], [0.5], [1.0]]), [items] * 3)
    np.testing.assert_allclose(apart.high - apart.estimate, 4.302652729911275 / np.sqrt(12), rtol=1e-6)
    # A model that was not trained has one row, and stands against every seed.
    _, by_seed = difference_over_seeds(items + np.array([[0.0], [0.5], [1.0]]), [items])
    np.testing.assert_allclose(by_seed, [0.0, 0.5, 1.0])


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_intervals_over_three_seeds_cover(spread):
    """Two methods without a difference, seeds that differ as much as items or not at all: seldom a verdict."""
    random = np.random.default_rng(0)
    covered, decided = 0, 0
    for _ in range(1000):
        items = random.normal(0, 0.5, 128)
        own, other = (
            items + random.normal(0, spread, (3, 1)) + random.normal(0, 0.3, (3, 128)) for _ in range(2)
        )  # fmt: skip
        interval, by_seed = difference_over_seeds(own, other)
        covered += interval.low <= 0 <= interval.high
        decided += _results.verdict(interval, by_seed) != "undecided"
    assert covered / 1000 >= 0.95 - COVERAGE
    assert decided / 1000 <= 0.05 + COVERAGE


def test_intervals_of_a_value_a_seed_cover():
    random = np.random.default_rng(0)
    intervals = [mean_over_seeds(random.normal(0, 1, 3))[0] for _ in range(1000)]
    covered = np.mean([one.low <= 0 <= one.high for one in intervals])
    assert abs(covered - 0.95) < COVERAGE


def test_a_result_comes_back(tmp_path):
    kept = result(tmp_path)
    path = _results.save(tmp_path, kept)
    found = _results.load(tmp_path)
    assert [one.verdict for one in found.claims] == ["holds", "reversed"]
    assert (found.values, found.figures, found.judges) == (kept.values, kept.figures, kept.judges)
    assert found.tables[1].rows == [{"win": "25.0", "n": "3", "x": "0.123"}]
    assert not list(tmp_path.glob("*.tmp"))
    value = json.loads(path.read_text())
    del value["seeds"]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"result\.json: not the result of an experiment"):
        _results.load(tmp_path)


def test_a_figure_that_is_not_there_is_refused(tmp_path):
    kept = result(tmp_path)
    (tmp_path / "curve.svg").unlink()
    with pytest.raises(InputError, match=r"result of imdb: there is no figure .*curve\.svg"):
        _results.save(tmp_path, kept)


def test_the_page_and_the_tables(tmp_path, capsys):
    runs = tmp_path / "runs"
    (runs / "imdb").mkdir(parents=True)
    _results.save(runs / "imdb", result(runs / "imdb"))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{report.BEGIN}\nwhat stood here\n{report.END}\n\nafter\n")
    page = tmp_path / "out" / "report.html"
    flags = ["--output", str(page), "--readme", str(readme), "--images", str(tmp_path / "images")]
    report.main([str(runs), *flags])
    text = page.read_text()
    for words in (
        "Sentiment &lt;b&gt;",
        "a curve (figure 2)",
        "data:image/svg+xml;base64,",
        "rows (table 1)",
        "reversed",
    ):
        assert words in text
    tables = readme.read_text()
    assert tables.startswith("before")
    assert tables.endswith("after\n")
    assert "what stood here" not in tables
    for words in (
        "| 1 | A \\| B | 0.2 [0.1, 0.3] | 2 | holds |",
        "| 2 | A \\| B | -0.20 [-0.30, -0.10] | 1 | reversed |",
        "2. Difference (paper). Too small.",
        "| win rate | 61 % | 0.5 [0.4, 0.6] | 3 |",
        "S: a scorer",
        "kept rows (table 2):",
        "(images/imdb.png)",
    ):
        assert words in tables
    assert "rows (table 1)" not in tables
    report.main([str(runs / "imdb"), *flags])
    assert readme.read_text() == tables


@pytest.mark.parametrize("missing", ["runs", "marks"])
def test_what_the_report_refuses(tmp_path, missing, capsys):
    folder = tmp_path / "imdb"
    folder.mkdir()
    if missing != "runs":
        _results.save(folder, result(folder))
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(SystemExit) as stop:
        report.main([str(folder), "--output", str(tmp_path / "r.html"), "--readme", str(readme)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert ("holds no result.json" if missing == "runs" else "needs a line") in said
    assert readme.read_text() == "no marks\n"


def test_kept_results_need_no_run(tmp_path):
    """What is kept of a result makes the same tables, and a page with the figures that are kept."""
    runs, kept, images = tmp_path / "runs" / "imdb", tmp_path / "kept" / "results", tmp_path / "kept" / "images"
    runs.mkdir(parents=True)
    _results.save(runs, result(runs))
    marks = f"{report.BEGIN}\n{report.END}\n"
    for name, source in (("first", runs), ("second", kept)):
        (tmp_path / f"{name}.md").write_text(marks)
        arguments = [str(source), "--output", str(tmp_path / f"{name}.html"), "--keep", str(kept)]
        report.main([*arguments, "--images", str(images), "--readme", str(tmp_path / f"{name}.md")])
    assert (tmp_path / "first.md").read_text() == (tmp_path / "second.md").read_text() != marks
    assert [file.name for file in images.iterdir()] == ["imdb.png"]
    assert "data:image/png;base64," in (tmp_path / "second.html").read_text()
    (runs / "curve.png").unlink()
    with pytest.raises(InputError, match=r"result of imdb: there is no figure .*curve\.png"):
        _results.keep(runs, _results.load(runs), kept, images)


def test_what_was_kept_before_stays_on_the_page(tmp_path, capsys):
    """A run of some experiments replaces theirs; two presets of one are not kept under one name."""
    kept, readme = tmp_path / "kept", tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    flags = ["--output", str(tmp_path / "r.html"), "--keep", str(kept), "--images", str(tmp_path / "images")]
    for name in ("imdb", "tldr"):
        (tmp_path / name).mkdir()
        _results.save(tmp_path / name, dataclasses.replace(result(tmp_path / name), experiment=name))
        report.main([str(tmp_path / name), *flags, "--readme", str(readme)])
    assert readme.read_text().count("### Sentiment") == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "imdb"), str(kept), *flags])
    assert capsys.readouterr().err == "report: --keep: RUNS hold imdb twice, and one preset of an experiment is kept\n"


def test_a_preset_is_finished_where_its_own_result_lies(tmp_path):
    assert not _results.finished(tmp_path, "mini")
    _results.save(tmp_path, result(tmp_path))
    assert _results.finished(tmp_path, "mini")
    assert not _results.finished(tmp_path, "paper")
    (tmp_path / "result.json").write_text("{")
    assert not _results.finished(tmp_path, "mini")


def test_the_readme_is_written_from_the_kept_results():
    kept = [one for _, one in report.find([ROOT / "experiments" / "results"])]
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    _, _, marked = readme.partition(report.BEGIN)
    assert marked.partition(report.END)[0].strip() == readme_tables(kept).strip()
    for one in kept:
        for claim in one.claims:
            assert claim.verdict == "holds" or claim.why, f"{one.experiment}: {claim.claim}: why?"
