"""``main``: what it prints, what it returns, and how a failure that is nobody's input looks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.cli._ending import out_of_memory
from jaxalign.cli._main import COMMANDS, GROUPS
from jaxalign.recipes import dpo, sft
from jaxalign.training import TrainingError

FLAGS = ("--model", "m", "--dataset", "d", "--output-dir", "o")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_them(arguments, shell):
    status, output, errors = shell(*arguments)
    assert (status, errors) == (0, "")
    for name, command in COMMANDS.items():
        assert f"jaxalign {name} " in output
        assert command.summary in output
    assert max(map(len, output.splitlines())) <= 120


def test_version(shell):
    assert shell("--version") == (0, f"{jaxalign.__version__}\n", "")


# Those that take another name first: a recipe, a command of the group.
@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("preview", "plan", "doctor") and name not in GROUPS]
)
def test_every_flag_has_its_help(command, shell):
    status, output, errors = shell(command, "--help")
    assert (status, errors) == (0, "")
    assert output.startswith(f"usage: jaxalign {command}")
    of_runs = ("--seed", "--learning-rate", "--mesh")
    own = {
        "sample": ("--seed",),
        "collect": ("--seed", "--rater", "--people"),
        "convert": ("--output-dir", "--max-shard-size"),
        "evaluate": ("--seed", "--verdicts", "--completions"),
    }
    for flag in ("--model", "--dtype", *own.get(command, of_runs)):
        assert flag in output
    assert "Folder in Hugging Face format, or a hub id." in " ".join(output.split())


def test_the_previews_help_lists_its_recipes(shell):
    status, output, errors = shell("preview", "--help")
    assert (status, errors) == (0, "")
    assert output.startswith("usage: jaxalign preview RECIPE --model")
    for name in ("sft", "dpo", "reward", "hindsight", "ppo"):
        assert f"jaxalign preview {name} " in output
        assert COMMANDS[name].summary in output
    assert max(map(len, output.splitlines())) <= 120


@pytest.mark.parametrize("group", GROUPS)
def test_a_groups_help_lists_its_commands(group, shell, refused):
    for arguments in ([], ["--help"], ["-h"]):
        status, output, errors = shell(group, *arguments)
        assert (status, errors) == (0, "")
        for name, command in GROUPS[group].items():
            assert f"jaxalign {group} {name} " in output
            assert command.summary in output
    first = next(iter(GROUPS[group]))
    assert refused(group, f"{first}x") == f"{group}: unknown command '{first}x'; did you mean '{first}'?"
    assert refused(group, "--model", "m").startswith(f"{group}: name the command first: {first}")


def test_help_is_quick():
    """Nothing heavy is imported before a command is asked for."""
    program = (
        "import sys; from jaxalign.cli import main; assert main(['--help']) == 0; "
        "heavy = {'jax', 'flax', 'optax', 'transformers', 'datasets', 'orbax', 'grain', 'numpy', 'torch'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def exhaust():
    jnp.zeros((1 << 60,), jnp.float32).block_until_ready()


def test_out_of_memory_names_the_flags_that_help():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        exhaust()
    advice = out_of_memory(caught.value)
    assert advice is not None
    assert "the device's memory" in advice
    assert "asked for 4611686018427387904 bytes" in advice
    for flag in ("--accumulation", "--remat", "--max-length", "--frozen-layers", "--dtype", "--mesh", "--batch-size"):
        assert flag in advice
        assert flag.removeprefix("--").replace("-", "_") in dpo.DPOConfig.__dataclass_fields__


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 33.50GiB.", "33.50GiB"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.2G of 15.7G hbm.", None),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", None),
    ],
)
def test_out_of_memory_in_the_words_of_other_devices(text, asked):
    advice = out_of_memory(RuntimeError(text))
    assert advice is not None
    assert ("asked for" in advice) == (asked is not None)
    assert asked is None or f"asked for {asked})" in advice


def test_the_hosts_memory_is_told_apart():
    assert "the host's memory" in (out_of_memory(MemoryError("Unable to allocate 3 TiB")) or "")


@pytest.mark.parametrize("error", [ValueError("shapes do not match"), RuntimeError("INTERNAL: something else")])
def test_other_errors_are_not_out_of_memory(error):
    assert out_of_memory(error) is None


def fail_with(monkeypatch, action, recipe=dpo):
    def run(config):
        action()

    monkeypatch.setattr(recipe, "run", run)


def test_a_run_out_of_memory_is_one_line_and_status_1(monkeypatch, shell):
    fail_with(monkeypatch, exhaust)
    status, output, errors = shell("dpo", *FLAGS)
    assert (status, output) == (1, "")
    assert errors.startswith("jaxalign: out of memory: ")
    assert errors.count("\n") == 1


def raises(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (TrainingError("step 3: loss is not finite; records [1, 2]"), 1, "step 3: loss is not finite; records [1, 2]"),
        (FloatingPointError("the log-probs are not finite"), 1, "the log-probs are not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: Permission denied"),
        (jaxalign.errors.InputError("two\nlines"), 2, "two lines"),
    ],
)
def test_what_ends_a_run_is_one_line(error, status, line, monkeypatch, shell):
    fail_with(monkeypatch, raises(error), sft)
    assert shell("sft", *FLAGS) == (status, "", f"jaxalign: {line}\n")


@pytest.mark.parametrize("error", [KeyError("a bug"), OSError("a bug that names no file")])
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    fail_with(monkeypatch, raises(error))
    with pytest.raises(type(error)):
        main(["dpo", *FLAGS])
