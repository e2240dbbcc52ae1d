"""``jaxalign evaluate``: what it writes of a run, of completions and of verdicts, and what it refuses."""

import csv
import json
import math

import numpy as np
import pytest

from jaxalign import evaluation, models, recipes, sharding
from tests.evaluation.test_frontier import curve
from tests.recipes import toy
from tests.tolerances import FLOAT32, FLOAT64

REWARD = "def goods(prompts, completions):\n    return [text.count('good') for text in completions]\n"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A folder with a model, its completions of two prompts, and others of the same prompts."""
    from jaxalign.cli import main

    folder = tmp_path_factory.mktemp("sampled")
    models.save_pretrained(folder / "model", toy.SHAPES["gpt2"], toy.talker(), toy.tokenizer())
    toy.write_jsonl(folder / "prompts.jsonl", [{"prompt": " good film"}, {"prompt": " bad plot"}])
    flags = ("--model", folder / "model", "--prompts", folder / "prompts.jsonl", "--output", folder / "ours.jsonl")
    assert main(["sample", *map(str, flags), "--max-new-tokens", "6", "--samples-per-prompt", "8"]) == 0
    theirs = [
        {"prompt": " good film", "completion": " was good and good"},
        {"prompt": " bad plot", "completion": " <script>alert(1)</script> was bad", "finished": False},
    ]
    toy.write_jsonl(folder / "theirs.jsonl", theirs)
    references = [{"prompt": " good film", "completion": " was good"}, {"prompt": " bad plot", "chosen": " was bad"}]
    toy.write_jsonl(folder / "references.jsonl", references)
    (folder / "rewards.py").write_text(REWARD)
    return folder


@pytest.fixture
def evaluate(shell, tmp_path):
    """Run it; the folder it wrote to, and what it said."""

    def run(*flags):
        status, output, errors = shell("evaluate", "--output-dir", tmp_path / "out", *flags)
        assert (status, errors) == (0, ""), errors
        return tmp_path / "out", output

    return run


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_completions_are_measured_by_everything_that_is_given(evaluate, sampled):
    out, said = evaluate(
        "--completions", f"start={sampled / 'ours.jsonl'}", sampled / "theirs.jsonl",
        "--references", sampled / "references.jsonl", "--model", sampled / "model",
        "--reward", f"{sampled / 'rewards.py'}:goods",
    )  # fmt: skip
    start, theirs = rows_of(out / "texts.csv")
    assert (start["name"], theirs["name"]) == ("start", "theirs")
    assert (start["prompts"], start["completions"]) == ("2", "16")
    assert float(theirs["finished %"]) == 50
    assert float(theirs["words"]) == 3.5
    start, theirs = rows_of(out / "scores.csv")
    assert float(theirs["reward"]) == 1.0
    assert float(theirs["ROUGE-1"]) == pytest.approx((4 / 6 + 4 / 8) / 2, abs=FLOAT64)  # script, alert, 1, script

    # What it sampled itself, at temperature 1: no KL, and the perplexity of the tokens it sampled.
    ours = [json.loads(line) for line in (sampled / "ours.jsonl").read_text().splitlines()]
    total, tokens = 0.0, 0
    examples = toy.examples([row for row in ours if row["completion"]])
    mesh = sharding.parse_mesh("data=1")
    for row in recipes.example_log_probs(toy.SHAPES["gpt2"], toy.talker(), examples, mesh=mesh):
        total, tokens = total + row.sum(), tokens + len(row)
    if len(examples) == len(ours):
        assert float(start["perplexity"]) == pytest.approx(math.exp(-total / tokens), rel=FLOAT32)
    np.testing.assert_allclose(float(start["KL (nats/completion)"]), 0, atol=1e2 * FLOAT32)
    np.testing.assert_allclose(float(start["KL, k3 (nats/completion)"].split()[0]), 0, atol=1e2 * FLOAT32)
    assert theirs["KL (nats/completion)"] == ""  # no log-probs: nothing is made up
    assert rows_of(out / "differences.csv")[0]["prompts"] == "2"

    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<th>start</th><th>theirs</th><th>reference</th>" in page
    assert all(line.split(", ")[0].startswith(str(out)) for line in said.splitlines())
    for name in ("texts.md", "scores.tex", "completions_frontier.png", "completions_frontier.svg"):
        assert (out / name).stat().st_size > 0


def test_one_completion_of_one_prompt_has_no_interval(evaluate, tmp_path):
    path = toy.write_jsonl(tmp_path / "one.jsonl", [{"prompt": "a", "completion": "b c"}])
    out, _ = evaluate("--completions", path)
    assert not (out / "scores.csv").exists()
    (row,) = rows_of(out / "texts.csv")
    assert float(row["words"]) == 2
    assert "words low" not in row


INVALID = {"outcome": "invalid", "prompt": "q"}


def verdicts(tmp_path):
    rows = []
    for number in range(24):
        for method, won in (("DPO", 16), ("PPO", 8)):
            for temperature in (0.0, 1.0):
                outcome = "win" if number < won - 4 * temperature else "tie" if number % 7 == 0 else "lose"
                rows.append({
                    "prompt": f"p{number}", "ours": "x" * number, "theirs": "y z", "outcome": outcome, "method": method,
                    "against": "reference", "temperature": temperature, "judge": "J", "axis": "overall",
                })  # fmt: skip
    again = [row | {"judge": "K", "outcome": "win"} for row in rows if row["method"] == "DPO"]
    return toy.write_jsonl(
        tmp_path / "verdicts.jsonl", [*rows, *again, rows[0] | {"outcome": "invalid", "prompt": "q"}]
    )


def test_a_study_that_nobody_has_answered_is_left_out(shell, tmp_path):
    """It exports a file without a line."""
    empty = tmp_path / "nobody.jsonl"
    empty.touch()
    out = tmp_path / "out"
    status, _, errors = shell("evaluate", "--verdicts", verdicts(tmp_path), f"people={empty}", "--output-dir", out)
    assert (status, errors) == (0, f"jaxalign: --verdicts: {empty} holds no verdict yet: left out\n")
    assert {row["judge"] for row in rows_of(out / "win_rates.csv")} == {"J", "K"}
    status, _, errors = shell("evaluate", "--verdicts", empty, "--output-dir", tmp_path / "none")
    assert status == 2
    assert errors.endswith("jaxalign: --verdicts: there is no verdict in these files\n")
    assert not (tmp_path / "none").exists()


def test_verdicts_become_rates_tables_and_figures(evaluate, tmp_path):
    out, _ = evaluate("--verdicts", verdicts(tmp_path), "--ties", "exclude")
    rates = {(row["method"], row["judge"], row["temperature"]): row for row in rows_of(out / "win_rates.csv")}
    assert float(rates["DPO", "J", "0"]["win rate %"]) == pytest.approx(100 * 16 / 23, abs=FLOAT64)  # 21 is a tie
    assert rates["DPO", "J", "0"]["invalid"] == "1"
    assert {row["first"] + row["second"] for row in rows_of(out / "paired_tests.csv")} == {"DPOPPO"}
    (agreement,) = rows_of(out / "judge_agreement.csv")
    assert agreement["comparisons"] == "48"
    pairwise = rows_of(out / "pairwise.csv")
    assert float(pairwise[0]["win"]) == pytest.approx(100 * 16 / 24, abs=FLOAT64)
    assert not (out / "pairwise.png").exists()  # the curve says it better
    for name in ("win_rate_over_temperature.png", "win_rate_over_temperature.svg", "win_rates.tex"):
        assert (out / name).stat().st_size > 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "145 comparisons, 1 of them without a valid verdict" in page
    assert "a tie is left out" in page


def test_people_beside_judges_make_the_papers_table(evaluate, tmp_path):
    """Files as ``jaxalign judge`` and the human study write them: two names, no judge; a rater."""
    rows, people = [], []
    for number in range(12):
        row = {"prompt": f"p{number}", "ours": "a", "theirs": "b c", "axis": "overall"}
        outcome = "win" if number < 8 else "lose"
        rows.append(row | {"names": ["DPO", "PPO"], "outcome": outcome, "preference": "first", "text": "A"})
        for rater in ("ann", "ben")[: 1 + number % 2]:
            said = "win" if number < 6 else "lose"
            person = {"method": "DPO", "against": "PPO", "judge": "people", "rater": rater, "outcome": said}
            people.append(row | person)
    files = toy.write_jsonl(tmp_path / "s.jsonl", rows), toy.write_jsonl(tmp_path / "people.jsonl", people)
    out, _ = evaluate("--verdicts", f"S={files[0]}", files[1])
    found = {row[""]: row["DPO"] for row in rows_of(out / "human_study.csv")}
    assert (found["N respondents"], found["raters"]) == ("18", "2")
    assert float(found["judge (S) win %"]) == pytest.approx(100 * 8 / 12, abs=FLOAT64)
    assert float(found["human win %"]) == pytest.approx(50, abs=FLOAT64)
    assert float(found["judge (S)-human agree"]) == pytest.approx(100 * 15 / 18, abs=FLOAT64)
    assert float(found["human-human agree"]) == 100
    rows = {(row["first"], row["second"]): row for row in rows_of(out / "judge_agreement.csv")}
    assert set(rows) == {("S", "people"), ("people", "people")}
    assert float(rows["S", "people"]["agreement %"]) == pytest.approx(100 * 15 / 18, abs=FLOAT64)
    assert rows["S", "people"]["kappa"] == ""  # some have two people
    assert float(rows["people", "people"]["alpha"]) == 1


def test_a_run_is_shown_with_curves_settings_and_frontier(evaluate, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": step, "loss": 1 / step, "lr": 0.1, "note": "x", "bad": None} for step in (1, 2, 3)]
    toy.write_jsonl(folder / "metrics.jsonl", rows)
    (folder / "config.json").write_text(json.dumps({"beta": 0.1, "model": "<b>m</b>", "rank": None}))
    points = curve("DPO", "beta 0.1", [(0, 0.0), (4, 2.0)], noise=0.1) + curve(
        "SFT", "", [(0, 0.0), (3, 0.5)], noise=0.1
    )
    (folder / "results.json").write_text(json.dumps({"points": [point.to_json() for point in points]}))
    out, _ = evaluate("--run", folder, "--title", "A & B")
    assert {row["setting"]: row["value"] for row in rows_of(out / "settings.csv")} == {
        "beta": "0.1", "model": "<b>m</b>", "rank": "null",
    }  # fmt: skip
    assert "Pareto front" in (out / "frontier.svg").read_text()
    assert len(rows_of(out / "frontier.csv")) == 4
    areas = {row["method"]: row for row in rows_of(out / "frontier_area.csv")}
    assert float(areas["DPO"]["mean best reward"]) > float(areas["SFT"]["mean best reward"])
    curves = (out / "curves.svg").read_text()
    assert "loss" in curves
    assert ">lr<" not in curves  # it never moved
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in page
    assert "&lt;b&gt;m&lt;/b&gt;" in page


def test_the_same_input_gives_the_same_bytes(shell, tmp_path):
    path = verdicts(tmp_path)
    for name in ("a", "b"):
        assert shell("evaluate", "--verdicts", path, "--output-dir", tmp_path / name)[0] == 0
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


GOOD = {"prompt": "a", "completion": "b"}
BAD = {
    "nothing": ([], [], "--run, --completions or --verdicts: give at least one"),
    "a reward without texts": (["--run", ".", "--reward", "m:f"], [], "--reward: there is nothing to measure without"),
    "no file": (["--completions", "none.jsonl"], [], "none.jsonl: no such file or folder"),
    "no run": (["--run", "nowhere"], [], "--run: nowhere: no such folder"),
    "no prompt": (["--completions", "FILE"], [GOOD, {"completion": "b"}], "FILE: row 2: missing field 'prompt'"),
    "no text": (["--completions", "FILE"], [{"prompt": "a"}], "FILE: row 1: field 'completion' is missing or no text"),
    "finished": (["--completions", "FILE"], [GOOD | {"finished": 1}], "FILE: row 1: field 'finished' is 1, must be"),
    "token_log_probs": (
        ["--completions", "FILE"], [GOOD | {"token_log_probs": 1}], "FILE: row 1: field 'token_log_probs' is 1, no list"
    ),
    "log_prob": (["--completions", "FILE"], [GOOD | {"log_prob": "x"}], "FILE: row 1: field 'log_prob' is 'x', no"),
    "one name twice": (["--completions", "FILE", "rows=FILE"], [GOOD], "--completions: two files are called 'rows'"),
    "ties": (["--verdicts", "FILE", "--ties", "drop"], [GOOD], "--ties: expected one of half, exclude, separate, got"),
    "a verdict": (["--verdicts", "FILE"], [GOOD], "FILE: row 1: missing field 'ours'"),
    "samples": (["--verdicts", "x", "--samples-shown", "-1"], [], "--samples-shown: must be at least 0, is -1"),
    "reward": (["--completions", "FILE", "--reward", "nowhere.py:f"], [GOOD], "--reward: nowhere.py: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags, rows, message = BAD[case]
    path = toy.write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = [flag.replace("FILE", str(path)) for flag in flags]
    assert refused("evaluate", "--output-dir", "out", *flags).replace(str(path), "FILE").startswith(message)
    assert not (tmp_path / "out").exists()


def test_references_of_other_prompts_are_refused(refused, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [GOOD])
    other = toy.write_jsonl(tmp_path / "other.jsonl", [{"prompt": "z", "completion": "b"}])
    flags = ("--completions", path, "--references", other, "--output-dir", tmp_path / "out")
    assert refused("evaluate", *flags) == f"--references: {other} has no reference to a prompt of rows"
    broken = toy.write_jsonl(tmp_path / "broken.jsonl", [{"prompt": "a"}])
    flags = ("--completions", path, "--references", broken, "--output-dir", tmp_path / "out")
    assert refused("evaluate", *flags).startswith(f"{broken}: row 1: a reference needs 'prompt' and 'completion'")


def test_a_results_file_that_holds_no_points_is_named(refused, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"points": [{"method": "DPO"}]}))
    line = refused("evaluate", "--run", tmp_path, "--output-dir", tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'results.json'}: 'points' are no points of a frontier: KeyError")


def test_the_page_is_the_library_page(evaluate, tmp_path):
    """The command adds no numbers of its own: the rows are those of the functions."""
    row = {"prompt": "p", "ours": "a", "theirs": "b c", "outcome": "win"}
    rows = [row, row | {"outcome": "tie", "prompt": "q"}, row | {"axis": "coverage"}, row | {"outcome": "lose"}]
    path = toy.write_jsonl(tmp_path / "verdicts.jsonl", rows)
    out, _ = evaluate("--verdicts", path)
    pairs = evaluation.read_judged([json.loads(line) for line in path.read_text().splitlines()])
    assert (out / "pairwise.png").stat().st_size > 0
    assert (out / "pairwise.md").read_text() == evaluation.markdown_table(evaluation.pairwise_rows(pairs))
