"""``jaxalign judge run``: files in, verdicts and counts out, errors in one line."""

import csv
import json
import re

import pytest

from benchmarks._judge_server import Act, JudgeServer
from jaxalign.cli import _judge
from tests.recipes import toy

PAIRS = [
    {"prompt": f"item-{i} the film", "outputs": {"first": "good" * (1 + i % 3), "second": "fun!"}} for i in range(9)
]


@pytest.fixture
def pairs(tmp_path):
    return toy.write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


def rows(folder):
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def comparisons(folder):
    return json.loads((folder / "summary.json").read_text())["comparisons"]


def counts(folder, axis="overall"):
    (found,) = (row for row in comparisons(folder) if row["axis"] == axis)
    return {outcome: found[outcome] for outcome in ("win", "tie", "lose", "invalid")}


def begun(errors):
    """What is said behind the line with which the judging begins."""
    first, rest = errors.split("\n", 1)
    assert re.fullmatch(r"judging: \d+ comparisons", first)
    return rest


def length(prompts, completions):
    return [len(text) for text in completions]


LENGTH = f"{__file__}:length"


def test_a_reward_compares(shell, pairs, tmp_path):
    out = tmp_path / "out"
    arguments = ("judge", "run", "--judge", "reward", "--model", LENGTH, "--pairs", pairs, "--output-dir", out)
    status, output, errors = shell(*arguments)
    assert (status, begun(errors)) == (0, "")
    assert "overall: first against second: 6 won, 3 tied, 0 lost, 0 invalid; win rate 83.3 [" in output
    rate = comparisons(out)[0]["win_rate"]
    assert rate["estimate"] == pytest.approx(7.5 / 9)
    assert rate["low"] < rate["estimate"] < rate["high"]
    assert output.endswith(
        f"Tables and figures: jaxalign evaluate --verdicts {out / 'verdicts.jsonl'} --output-dir {out / 'report'}\n"
    )
    assert counts(out) == {"win": 6, "tie": 3, "lose": 0, "invalid": 0}
    found = rows(out)
    assert [row["prompt"] for row in found] == [pair["prompt"] for pair in PAIRS]
    assert {row["flipped"] for row in found} == {True, False}
    row = found[1]
    assert (row["ours"], row["theirs"], row["outcome"]) == ("goodgood", "fun!", "win")
    assert (row["preference"] == "second") == row["flipped"]
    assert row["text"] in ("rewards: first 8.0, second 4.0", "rewards: first 4.0, second 8.0")
    # Ours and theirs the other way round: every outcome mirrored.
    shell(*arguments, "--ours", "second")
    assert counts(out) == {"win": 0, "tie": 3, "lose": 6, "invalid": 0}
    row = rows(out)[0]
    assert (row["method"], row["against"], row["judge"]) == ("second", "first", LENGTH)


def test_judges_are_told_apart_by_their_labels(shell, pairs, tmp_path):
    flags = ("--judge", "reward", "--model", LENGTH, "--pairs", pairs, "--sampled-at", "0.7", "--step", "20")
    files = []
    for label in ("one", "two"):
        shell("judge", "run", *flags, "--label", label, "--output-dir", tmp_path / label)
        files.append(tmp_path / label / "verdicts.jsonl")
    row = rows(tmp_path / "two")[0]
    assert (row["judge"], row["temperature"], row["step"]) == ("two", 0.7, 20)
    for named, names in ((files, {"one", "two"}), ((f"other={files[0]}", files[1]), {"other", "two"})):
        status, _, errors = shell("evaluate", "--verdicts", *named, "--output-dir", tmp_path / "report")
        assert (status, errors) == (0, "")
        with open(tmp_path / "report" / "win_rates.csv") as table:
            assert {found["judge"] for found in csv.DictReader(table)} == names


def test_two_files_of_completions_are_matched_by_prompt(shell, tmp_path, refused):
    ours = [{"prompt": p, "completion": c} for p, c in (("a", "11"), ("b", "1"), ("a", "1"))]
    theirs = [{"prompt": p, "completion": c} for p, c in (("b", "22"), ("a", "2"), ("a", "2"))]
    files = [toy.write_jsonl(tmp_path / f"{n}.jsonl", r) for n, r in (("dpo", ours), ("sft", theirs))]
    base = ("judge", "run", "--judge", "reward", "--model", LENGTH, "--output", tmp_path / "out", "--completions")
    status, output, _ = shell(*base, *files)
    assert status == 0
    assert "overall: dpo against sft: 1 won, 1 tied, 1 lost, 0 invalid" in output
    assert [row["outcome"] for row in rows(tmp_path / "out")] == ["win", "lose", "tie"]
    short = toy.write_jsonl(tmp_path / "short.jsonl", theirs[:2])
    line = f"{files[0]}: row 3: {short} has no completion, or none left, of the prompt 'a'"
    assert refused(*base, files[0], short) == line
    line = f"{files[0]}: {short} has no completion, or none left, of the prompt 'a'"
    assert refused(*base, short, files[0]) == line


def test_an_endpoint_compares_and_a_rerun_asks_nothing(shell, pairs, tmp_path):
    out = tmp_path / "out"
    with JudgeServer(lambda question, _: Act(content="?") if "item-4 " in question else Act()) as server:
        arguments = (
            "judge", "run", "--judge", "openai", "--model", "m", "--base-url", server.url, "--api-key-variable", "None",
            "--pairs", pairs, "--output-dir", out, "--axes", "accuracy,coverage",
            "--prompt-price", "1", "--completion-price", "10",
        )  # fmt: skip
        status, output, errors = shell(*arguments)
        assert (status, begun(errors)) == (0, "")
        summary = json.loads((out / "summary.json").read_text())
        assert [row["axis"] for row in summary["comparisons"]] == ["accuracy", "coverage"]
        for axis in ("accuracy", "coverage"):
            assert counts(out, axis)["invalid"] == 1
            assert sum(counts(out, axis).values()) == 9
        used = summary["this_run"]
        assert used["requests"] == 18
        assert used["cost"] == pytest.approx((used["prompt_tokens"] + 10 * used["completion_tokens"]) / 1e6)
        assert "this run: 18 requests (0 failed)" in output
        first = (out / "verdicts.jsonl").read_bytes()
        status, output, _ = shell(*arguments)
        assert status == 0
        assert "this run: 0 requests" in output
        assert (out / "verdicts.jsonl").read_bytes() == first
        assert sum(server.asked.values()) == 18


def test_an_endpoint_that_stays_away_fails_in_one_line_and_keeps_what_it_gave(shell, pairs, tmp_path):
    out = tmp_path / "out"
    with JudgeServer(lambda question, _: Act(status=500) if "item-4 " in question else Act()) as server:
        arguments = (
            "judge", "run", "--judge", "openai", "--model", "m", "--base-url", server.url, "--api-key-variable", "None",
            "--pairs", pairs, "--output-dir", out, "--max-attempts", "2", "--first-pause", "0.01",
        )  # fmt: skip
        status, _, errors = shell(*arguments)
        assert status == 1
        assert begun(errors).startswith(
            f"jaxalign: m at {server.url}: 1 of 9 comparisons have no verdict; the last reason:"
        )
        assert [row["prompt"] for row in rows(out)] == [p["prompt"] for p in PAIRS if "item-4 " not in p["prompt"]]
        assert json.loads((out / "summary.json").read_text())["without_verdict"] == 1
        shell(*arguments)
        assert server.asked["item-4"] == 4
        assert sum(server.asked.values()) == 8 + 4


@pytest.mark.parametrize("judge", ["likelihood", "sampled"])
def test_a_local_model_compares(judge, shell, pairs, model, tmp_path):
    prompts = tmp_path / "short.toml"
    prompts.write_text(
        'text = "{question}{prompt}{first}{second}{answer}"\nexplained = "Preferred:{choices}"\n'
        'direct = "Preferred:{choices}"\n[questions]\noverall = "?"\n'
    )
    flags = ("--model", model, "--pairs", pairs, "--output-dir", tmp_path / "out", "--prompts", prompts)
    flags += ("--max-tokens", "2") if judge == "sampled" else ()
    status, _, errors = shell("judge", "run", "--judge", judge, *flags)
    assert (status, begun(errors)) == (0, "")
    found = counts(tmp_path / "out")
    assert sum(found.values()) == 9
    assert (found["invalid"] == 0) == (judge == "likelihood")


def test_messages_are_read_as_turns(shell, tmp_path):
    prompt = [{"role": "user", "content": "Hi item-1 "}, {"role": "assistant", "content": "Yes?"}]
    outputs = {"first": [{"role": "assistant", "content": "a"}], "second": "b"}
    pairs = toy.write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt, "outputs": outputs}])
    with JudgeServer(lambda *_: Act()) as server:
        status, _, _ = shell(
            "judge", "run", "--judge", "openai", "--model", "m", "--base-url", server.url, "--api-key-variable", "None",
            "--pairs", pairs, "--output-dir", tmp_path / "out", "--prompts", "dialogue",
        )  # fmt: skip
        assert status == 0
        asked = server.requests[-1]["body"]["messages"][-1]["content"]
        assert "Conversation:\nUser: Hi item-1 \n\nAssistant: Yes?\n\nResponse A:\n" in asked
        assert {row[side] for row in rows(tmp_path / "out") for side in ("ours", "theirs")} == {"a", "b"}


def test_every_two_systems_of_a_row_are_compared_as_a_study_compares_them(shell, tmp_path):
    """One file of pairs is for both commands: also preferences, and a row that lacks a system."""
    from jaxalign.evaluation import study

    records = [
        {"prompt": "p", "outputs": {"x": "1", "y": "22", "z": "333"}},
        {"prompt": "q", "outputs": {"z": "1", "x": "1"}},
        {"prompt": "r", "chosen": "no", "rejected": "yes"},
    ]
    path = toy.write_jsonl(tmp_path / "outputs.jsonl", records)
    out = tmp_path / "out"
    flags = ("judge", "run", "--judge", "reward", "--model", LENGTH, "--pairs", path, "--output-dir", out)
    status, output, errors = shell(*flags)
    assert (status, begun(errors)) == (0, "")
    found = [(row["method"], row["against"], row["win"], row["tie"], row["lose"]) for row in comparisons(out)]
    assert found == [
        ("x", "y", 0, 0, 1), ("x", "z", 0, 1, 1), ("y", "z", 0, 0, 1), ("chosen", "rejected", 0, 0, 1)
    ]  # fmt: skip
    assert "overall: x against z: 0 won, 1 tied, 1 lost, 0 invalid" in output
    served, same = study.read_pairs(path)
    assert same == 1
    assert [pair.systems for pair in served] == [
        (row["method"], row["against"]) for row in rows(out) if row["outcome"] != "tie"
    ]
    one = toy.write_jsonl(tmp_path / "two.jsonl", records[:2])
    shell(*flags[:-3], one, "--output-dir", out, "--ours", "z")
    assert [(row["method"], row["against"]) for row in comparisons(out)] == [("z", "x"), ("z", "y")]


def test_a_refused_comparison_is_invalid_with_its_reason_and_asked_once(shell, pairs, tmp_path):
    out = tmp_path / "out"
    body = '{"error": {"message": "filtered", "code": "content_filter"}}'
    with JudgeServer(lambda question, _: Act(status=400, body=body) if "item-4 " in question else Act()) as server:
        flags = (
            "judge", "run", "--judge", "openai", "--model", "m", "--base-url", server.url, "--api-key-variable", "None",
            "--pairs", pairs, "--output-dir", out,
        )  # fmt: skip
        for _ in range(2):
            status, output, errors = shell(*flags)
            assert (status, begun(errors)) == (0, "")
            assert ", 1 invalid; win rate" in output
        assert sum(server.asked.values()) == 9
    (row,) = (row for row in rows(out) if row["outcome"] == "invalid")
    assert row["prompt"].startswith("item-4 ")
    assert row["text"].startswith("refused: status 400: ")
    assert "filtered" in row["text"]


def test_a_row_is_named_by_its_line_and_files_are_read_once(refused, tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "Hi"}]
    row = json.dumps({"prompt": turns, "outputs": {"first": "a", "second": "b"}})
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"\n{row}\n")
    flags = ("judge", "run", "--judge", "reward", "--model", LENGTH, "--pairs", path, "--output-dir", tmp_path / "out")
    assert refused(*flags).startswith(f"{path}: row 2: field 'prompt': a reward is given texts here")
    read, pairs = [], _judge._pairs
    monkeypatch.setattr(_judge, "_pairs", lambda config: read.append(config) or pairs(config))
    settings = {"model": "m", "output_dir": tmp_path, "pairs": path, "axes": ("accuracy", "coverage")}
    found = _judge._items(_judge.JudgeConfig(judge="openai", **settings))
    assert [item.axis for item in found] == ["accuracy", "coverage"]
    assert len(read) == 1


def test_judges_of_one_model_have_labels_of_their_own(tmp_path):
    settings = {"model": "m", "output_dir": tmp_path, "pairs": tmp_path}
    kinds = ("openai", "likelihood", "sampled", "reward")
    labels = [_judge._label(_judge.JudgeConfig(judge=kind, **settings)) for kind in kinds]
    assert labels == ["m, summaries", "m, summaries, by likelihood", "m, summaries, by samples", "m"]
    assert _judge._label(_judge.JudgeConfig(judge="sampled", label="x", **settings)) == "x"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "--pairs or --completions: give one of them"),
        (("--pairs", "PAIRS", "--completions", "a", "b"), "--pairs or --completions: give one of them"),
        (("--pairs", "PAIRS", "--ours", "other"), "PAIRS: row 1: no output of 'other' (--ours); it has first, second"),
        (("--pairs", "PAIRS", "--names", "x", "y"), "--names: is for --completions"),
        (("--completions", "PAIRS", "PAIRS", "--ours", "x"), "--ours: is for --pairs"),
        (("--completions", "PAIRS", "PAIRS", "--names", "x", "x"), "--names: two different names, both are 'x'"),
        (("--pairs", "PAIRS", "--axes", "overall,overall"), "--axes: one is named twice: overall, overall"),
        (("--pairs", "PAIRS", "--fields", "a", "b"), "unknown flag --fields; did you mean --ties?"),
        (("--pairs", "PAIRS", "--axes", "accuracy"), "--axes: a reward is asked nothing; it knows overall alone"),
        (("--pairs", "PAIRS", "--ties"), "--ties: is for --judge openai or sampled, not for reward"),
        (("--pairs", "PAIRS", "--tie-margin", "1"), "--tie-margin: is for --judge likelihood, not for reward"),
        (
            ("--pairs", "PAIRS", "--temperature", "0.7"),
            "--temperature: is for --judge openai or sampled, not for reward",
        ),
        (("--pairs", "PAIRS", "--timeout", "9"), "--timeout: is for --judge openai, not for reward"),
        (("--pairs", "PAIRS", "--step", "-1"), "--step: must be at least 0, is -1"),
        (("--pairs", "PAIRS", "--concurrency", "0"), "--concurrency: must be at least 1, is 0"),
        (("--pairs", "PAIRS", "--seeed", "0"), "unknown flag --seeed; did you mean --seed?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(flags, line, refused, pairs, tmp_path):
    flags = [str(pairs) if flag == "PAIRS" else flag for flag in flags]
    found = refused("judge", "run", "--judge", "reward", "--model", LENGTH, "--output-dir", tmp_path / "out", *flags)
    assert found == line.replace("PAIRS", str(pairs))


def test_a_missing_key_is_named(refused, pairs, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = ("--judge", "openai", "--model", "m", "--pairs", pairs, "--output-dir", tmp_path / "out")
    assert refused("judge", "run", *flags).startswith("OPENAI_API_KEY: not set;")


def test_every_flag_of_judge_run_has_its_help(shell):
    status, output, errors = shell("judge", "run", "--help")
    assert (status, errors) == (0, "")
    assert output.startswith("usage: jaxalign judge run")
    for flag in ("--judge", "--pairs", "--completions", "--base-url", "--api-key-variable", "--cache", "--seed"):
        assert flag in output
    assert "api-key " not in output  # a key is never a flag
