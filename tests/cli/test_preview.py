"""``jaxalign preview``: what is shown of each recipe's data, and that nothing else happens."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from jaxalign import models
from jaxalign.cli import _preview
from jaxalign.recipes import sft
from tests.data import toy as tokenizers
from tests.recipes import toy

PAIR = {"prompt": " the film", "chosen": " was good", "rejected": " was"}
RANKED = {"prompt": " the film", "responses": [" bad", " was good", " fun"], "ratings": [0, 2, 1]}


@pytest.fixture
def preview(shell, model, tmp_path, monkeypatch):
    """What a preview of rows prints; it reads no weights and writes nothing."""

    def never(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(models, "load_pretrained", never)
    monkeypatch.chdir(tmp_path)

    def run(recipe, rows, *flags, folder=model):
        toy.write_jsonl(tmp_path / "rows.jsonl", rows)
        before = _contents(tmp_path, folder)
        status, output, errors = shell("preview", recipe, "--model", folder, "--dataset", "rows.jsonl", *flags)
        assert status == 0, errors
        assert errors.startswith(f"rows.jsonl: rows_read {len(rows)}, examples ")
        assert _contents(tmp_path, folder) == before
        return output

    return run


def _contents(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def test_demonstrations(preview):
    rows = [{"prompt": " the film", "completion": " was good"}, {"text": " bad plot"}, *toy.demonstrations()]
    assert preview("sft", rows, "--rows", 2) == (
        "== record 0: 5 tokens, 3 supervised, whole\n"
        " the film⟦ was good<eos>⟧\n"
        "== record 1: 3 tokens, 2 supervised, whole\n"
        " bad⟦ plot<eos>⟧\n"
        "10 examples, 85 tokens, 44 supervised (51.8%), longest row 11 tokens\n"
    )


@pytest.mark.parametrize("recipe", ["dpo", "reward"])
def test_preferences_show_each_answer_with_its_prompt(preview, recipe):
    assert preview(recipe, [RANKED, PAIR]) == (
        "== record 0: 9 tokens, 7 supervised, whole\n"
        "-- answer 1 of 3\n"
        " the film⟦ bad<eos>⟧\n"
        "-- answer 2 of 3, better than 1, 3\n"
        " the film⟦ was good<eos>⟧\n"
        "-- answer 3 of 3, better than 1\n"
        " the film⟦ fun<eos>⟧\n"
        "== record 1: 7 tokens, 5 supervised, whole\n"
        "-- answer 1 of 2, better than 2\n"
        " the film⟦ was good<eos>⟧\n"
        "-- answer 2 of 2\n"
        " the film⟦ was<eos>⟧\n"
        "2 examples, 16 tokens, 12 supervised (75.0%), longest row 9 tokens\n"
    )
    assert "longest row 5 tokens" in preview(recipe, [RANKED, PAIR], "--pair-layout", "two_rows")


@pytest.mark.parametrize("recipe", ["dpo", "reward"])
def test_the_first_target_of_every_answer_is_predicted_from_the_prompt(preview, recipe):
    assert preview(recipe, [PAIR], "--tokens", "True") == (
        "== record 0: 7 tokens, 5 supervised, whole\n"
        "index position branch      id supervised  from  text\n"
        "    0        0      0     285                   ' the'\n"
        "    1        1      0     291                   ' film'\n"
        "    2        2      1     286          *     1  ' was'\n"
        "    3        3      1     289          *     2  ' good'\n"
        "    4        4      1       0          *     3  '<eos>'\n"
        "    5        2      2     286          *     1  ' was'\n"
        "    6        3      2       0          *     5  '<eos>'\n"
        "1 example, 7 tokens, 5 supervised (71.4%), longest row 7 tokens\n"
    )


def test_demonstrations_as_tokens(preview):
    assert preview("sft", [{"text": " bad plot"}, {"text": " it was"}], "--tokens", "--rows", 1) == (
        "== record 0: 3 tokens, 2 supervised, whole\n"
        "index position branch      id supervised  from  text\n"
        "    0        0      0     280                   ' bad'\n"
        "    1        1      0     290          *     0  ' plot'\n"
        "    2        2      0       0          *     1  '<eos>'\n"
        "2 examples, 6 tokens, 4 supervised (66.7%), longest row 3 tokens\n"
    )


CHAINS = ("--templates", "released", "--template-names", "helpful-unhelpful", "--structures", "pn")


def test_chains(preview, tmp_path):
    text = toy.write_jsonl(tmp_path / "text.jsonl", [{"text": " the plot was fun"}, {"text": " watch it"}])
    flags = ("--pretraining-dataset", text.name, "--max-length", 64)
    output = preview("hindsight", [PAIR], *CHAINS, *flags)
    assert re.sub(r"up to 4\d", "up to 4N", output) == (  # a bound: it is that of other words, too
        "== record 0: 41 tokens, 5 supervised (2 of outputs below the best), whole\n"
        " the film\n\nA helpful answer:⟦ was good<eos>⟧\n\nAn unhelpful answer:⟦ was<eos>⟧\n"
        "== pretraining text, window 1 of 2: 5 tokens, 4 supervised\n"
        " the⟦ plot was fun<eos>⟧\n"
        "1 example, 41 tokens, 5 supervised (12.2%), longest row up to 4N tokens; "
        "pretraining text: 2 windows, 8 tokens, 6 supervised (75.0%)\n"
    )


def test_a_chain_as_tokens(preview):
    flags = ("--templates", "released", "--template-names", "unhelpful-helpful", "--structures", "n", "--tokens")
    lines = preview("hindsight", [PAIR], *flags).splitlines()
    assert lines[0] == "== record 0: 22 tokens, 2 supervised (2 of outputs below the best), whole"
    assert [line.rsplit("  ", 1)[1] for line in lines[2:9]] == [
        "' the'", "' film'", r"'\n'", r"'\n'", "'A'", "'n'", "' '",
    ]  # fmt: skip
    assert not any("*" in line for line in lines[2:-3])
    assert lines[-3:-1] == [
        "   20       20      0     286          *    19  ' was'",
        "   21       21      0       0          *    20  '<eos>'",
    ]


def test_each_use_of_a_record_is_another_draw(preview):
    rows = [PAIR] * 8
    uses = [preview("hindsight", rows, "--rows", 8, "--use", use) for use in (0, 1, 0)]
    assert uses[0] == uses[2] == preview("hindsight", rows, "--rows", 8)
    assert uses[0] != uses[1]


def test_presets_and_other_names_of_flags_are_those_of_the_recipe(preview, tmp_path):
    each = preview("hindsight", [PAIR], "--preset", "sft-all", "--structures", "n", "p")
    assert re.findall("^== record 0: .*\n the film\n\nAn answer:⟦( was.*)⟧$", each, re.MULTILINE) == [
        " was<eos>",
        " was good<eos>",
    ]
    (tmp_path / "reward.py").write_text("def none(prompts, completions):\n    return [0.0] * len(completions)\n")
    flags = ("--reward", "reward.py:none", "--preset", "summarisation", "--beta", 0.1)
    assert preview("ppo", [RANKED, {"prompt": " bad plot and"}], *flags) == (
        "== rows.jsonl: row 1: 2 tokens, 0 supervised, whole\n"
        " the film\n"
        "== rows.jsonl: row 2: 3 tokens, 0 supervised, whole\n"
        " bad plot and\n"
        "2 prompts, 5 tokens, none supervised: the responses that are sampled will be; longest prompt 3 tokens\n"
    )
    limit = ("--max-prompt-length", 2, "--prompt-truncation", "keep_end", "--tokens")
    assert preview("ppo", [{"prompt": " bad plot and"}], *flags, *limit).splitlines()[:-1] == [
        "== rows.jsonl: row 1: 2 tokens, 0 supervised",
        "index position branch      id supervised  from  text",
        "    0        0      0     290                   ' plot'",
        "    1        1      0     288                   ' and'",
    ]


def test_characters_of_several_tokens_are_whole(preview):
    row = {"prompt": "naïve ☂", "completion": " été\t☃\x1b[31m"}
    assert "\nnaïve ☂⟦ été\t☃\\x1b[31m<eos>⟧\n" in preview("sft", [row])
    table = preview("sft", [row], "--tokens").splitlines()
    assert table[4].endswith("'Ã'")  # the first half of ï, as the vocabulary writes it
    assert len(table) == 2 + 26 + 1


def test_what_a_limit_cut_is_said(preview):
    row = {"prompt": " the film", "completion": " was good and fun"}
    cut = preview("sft", [row, row | {"completion": " was"}], "--max-length", 5)
    assert cut.startswith("== record 0: 5 tokens, 3 supervised, cut at 5 tokens\n the film⟦ was good and⟧\n")
    assert "== record 1: 4 tokens, 2 supervised, whole\n" in cut
    kept = ("--prompt-truncation", "keep_end", "--max-length")
    assert "== record 0: 7 tokens, 5 supervised\n" in preview("sft", [row], *kept, 7)  # perhaps: it is at the limit
    assert "== record 0: 7 tokens, 5 supervised, whole\n" in preview("sft", [row], *kept, 8)


def test_a_tokenizer_alone_is_enough_and_one_that_prefixes_spaces_is_shown_as_text(preview, tmp_path):
    tokenizers.metaspace().save_pretrained(tmp_path / "metaspace")
    rows = [{"prompt": "The film was", "completion": " good"}]
    output = preview("sft", rows, folder=tmp_path / "metaspace")
    assert "\n<s>The film was⟦ good</s>⟧\n" in output


def _terminal(model, tmp_path, **flags):
    config = _preview.config_of(sft.SFTConfig)(model=str(model), dataset=str(tmp_path / "rows.jsonl"), **flags)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", width=20, _environ={})
    _preview.run(config, sft.load, console)
    return written.getvalue()


def test_on_a_terminal_what_is_learnt_stands_out(model, tmp_path):
    row = {"prompt": " the film\n was", "completion": " [bold]good and fun to watch"}
    toy.write_jsonl(tmp_path / "rows.jsonl", [row])
    shown = _terminal(model, tmp_path)
    title, prompt, newline, summary, end = shown.split("\n")
    assert title.startswith("\x1b[1;36m== record 0: ")
    assert (prompt, newline.split("\x1b[1;32m")[0]) == ("\x1b[2m the film\x1b[0m", "\x1b[2m was\x1b[0m")
    assert newline.split("\x1b[1;32m")[1] == " [bold]good and fun to watch\x1b[0m\x1b[1;7;32m<eos>\x1b[0m"
    assert summary.startswith("1 example, ")
    assert not end
    assert "⟦" not in shown
    table = _terminal(model, tmp_path, tokens=True)
    assert re.search(r"\x1b\[1;7;32m +\d+ .*'<eos>'\x1b\[0m\n", table)


def test_a_pipe_that_has_read_enough_is_no_failure(model, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", toy.demonstrations() * 300)  # more than a pipe holds
    flags = ["--model", str(model), "--dataset", str(path), "--rows", "3000", "--tokens"]
    program = "import sys; from jaxalign.cli import main; sys.exit(main(['preview', 'sft', *sys.argv[1:]]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        assert head.stderr is not None
        assert head.stdout.readline().startswith("== record 0: 8 tokens")
        head.stdout.close()
        said = head.stderr.read()
    assert head.returncode == 0
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


FLAGS = ("--model", "m", "--dataset", "none.jsonl")
BAD = {
    "no recipe": ([], "preview: name the recipe first: sft, dpo, reward, hindsight, ppo"),
    "flags before the recipe": ([*FLAGS, "sft"], "preview: name the recipe first: sft, dpo, reward, hindsight, ppo"),
    "a misspelt recipe": (["hindsigt", *FLAGS], "preview: unknown recipe 'hindsigt'; did you mean 'hindsight'?"),
    "no recipe at all": (["convert"], "preview: unknown recipe 'convert'; the recipes are sft, dpo, reward, hindsight"),
    "a misspelt flag": (["sft", *FLAGS, "--row", "3"], "unknown flag --row; did you mean --rows?"),
    "another recipe's flag": (["sft", *FLAGS, "--structures", "p"], "unknown flag --structures; jaxalign preview sft"),
    "no rows": (["sft", *FLAGS, "--rows", "0"], "--rows: must be at least 1, is 0"),
    "rows that are no number": (["sft", *FLAGS, "--rows", "all"], "Error parsing --rows: "),
    "a use before the first": (["hindsight", *FLAGS, "--use", "-1"], "--use: must be at least 0, is -1"),
    "a use of what is not drawn": (["dpo", *FLAGS, "--use", "1"], "--use: only hindsight draws its examples anew"),
    "an unknown preset": (["hindsight", *FLAGS, "--preset", "x"], "--preset: expected one of paper, released, sft"),
    "the recipe's own check": (["ppo", *FLAGS], "--reward-model or --reward: give one of the two"),
    "no data set": (["sft", "--model", "m"], "missing: --dataset"),
    "no file": (["sft", *FLAGS], "none.jsonl: no such file or folder"),
    "prompts of no run": (
        ["hindsight", "--model", "m", "--prompts", "p.jsonl", "--rater", "r.py:f"],
        "--output-dir: with --prompts, name the run whose feedback.jsonl is to be shown",
    ),
    "nothing sampled yet": (
        ["hindsight", "--model", "m", "--prompts", "p.jsonl", "--rater", "r.py:f", "--output-dir", "o"],
        "o/feedback.jsonl: nothing has been sampled and rated yet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, refused):
    arguments, message = BAD[case]
    assert refused("preview", *arguments).startswith(message)


def test_a_folder_without_tokenizer_is_named(refused, files, tmp_path):
    line = refused("preview", "sft", "--model", tmp_path, "--dataset", files["demonstrations"])
    assert line.startswith(f"{tmp_path}: no tokenizer that can be read")


def test_a_bad_row_is_named(refused, model, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [PAIR, {"prompt": " a"}])
    line = refused("preview", "dpo", "--model", model, "--dataset", path)
    assert line.startswith(f"{path}: row 2: missing field 'completion'")


@pytest.mark.parametrize("recipe", _preview.RECIPES)
def test_help_of_a_recipe_has_its_flags_and_the_previews(recipe, shell):
    status, output, errors = shell("preview", recipe, "--help")
    assert (status, errors) == (0, "")
    assert output.startswith(f"usage: jaxalign preview {recipe} [-h] [OPTIONS]")
    for flag in ("--model", "--learning-rate", "--output-dir", "--rows INT", "--use INT", "--tokens"):
        assert flag in output
    words = " ".join(re.sub("[│╭╰]", " ", output).split())
    assert "Show the first N examples" in words
    assert "Folder in Hugging Face format, or a hub id." in words
    assert ("--structures" in output) is (recipe == "hindsight")
