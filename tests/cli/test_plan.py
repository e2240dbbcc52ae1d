"""``jaxalign plan``: help, what it prints, and how what is wrong with a flag is said."""

import dataclasses
import json
import subprocess
import sys

import pytest

from jaxalign.cli import _plan
from jaxalign.cli._main import COMMANDS
from jaxalign.recipes._plan_devices import CHIPS


def test_its_help_lists_recipes_and_imports_nothing_heavy():
    program = (
        "import sys; from jaxalign.cli import main; assert main(['plan', '--help']) == 0; "
        "sys.exit(', '.join({'jax', 'flax', 'optax', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: jaxalign plan RECIPE --model")
    for name in _plan.RECIPES:
        assert f"jaxalign plan {name} " in done.stdout
        assert COMMANDS[name].summary in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("recipe", _plan.RECIPES)
def test_a_recipes_help_has_its_own_flags_and_the_plans(recipe, shell):
    status, output, _ = shell("plan", recipe, "--help")
    assert status == 0
    for flag in ("--devices", "--row-tokens", "--suggest", "--json", "--remat", "--lora-rank", "--mesh"):
        assert flag in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "plan: name the recipe first: sft, dpo, reward, hindsight, ppo"),
        (("dop",), "plan: unknown recipe 'dop'; did you mean 'dpo'?"),
        (("dpo", "--model", "gpt2"), "missing: --devices"),
        (
            ("dpo", "--model", "gpt2", "--devices", "8xH900"),
            "--devices 8xH900: 'H900' is no chip that is known; did you mean 'H",
        ),
        (("dpo", "--model", "gpt2", "--devices", "4096xv5p"), "--devices: 4096 devices; a plan can be compiled for up"),
        (("dpo", "--model", "gpt3", "--devices", "H100"), "--model gpt3: neither a folder nor a model known by name"),
        (("sft", "--model", "gpt2", "--devices", "H100", "--rowtokens", "8"), "unknown flag --rowtokens; did you mean"),
        (("sft", "--model", "gpt2", "--devices", "H100", "--row-tokens", "1"), "--row-tokens: must be at least 2"),
        (
            ("sft", "--model", "gpt2", "--devices", "H100", "--dataset", "d"),
            "--dataset: lengths are those of --model's",
        ),
        (("ppo", "--model", "gpt2", "--devices", "H100"), "--reward-model or --reward: give one of the two"),
        (("ppo", "--model", "gpt2", "--devices", "H100", "--reward-model", "gpt9"), "--reward-model gpt9: neither"),
    ],
)
def test_what_is_wrong_names_the_flag(arguments, said, refused):
    assert refused("plan", *arguments).startswith(said)


def test_a_plan_as_json_with_the_lengths_of_the_data(model, files, shell):
    status, output, errors = shell(
        "plan", "dpo", "--model", model, "--dataset", files["pairs"], "--devices", "2xcpu", "--batch-size", 4,
        "--json", "True",
    )  # fmt: skip
    assert status == 0, errors
    found = json.loads(output)
    assert (found["chip"], found["devices"], found["rows"]) == ("cpu", 2, 4)
    assert found["row_tokens"] % 8 == 0
    assert found["row_tokens"] < 512  # of max_length it would be 768
    assert found["total"] == sum(found["memory"].values())
    assert found["fits"]
    assert found["network"]


def test_a_plan_as_tables(model, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    status, output, errors = shell(
        "plan", "sft", "--model", model, "--devices", "v5p-2", "--max-length", 32, "--batch-size", 2
    )
    assert status == 0, errors
    for part in (
        "on 1 v5p",
        "v5p-2: 2 TensorCores, 2 a chip; 1 devices",
        "parameters",
        "activations",
        "fits:",
        "TFLOP",
        "at least",
    ):
        assert part in output


def test_times_are_bounds_unless_the_chip_has_a_kernel_of_its_own(model, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ("plan", "sft", "--model", model, "--devices", "H100", "--max-length", 32, "--batch-size", 2)
    _, plain, _ = shell(*command)
    assert "at least" in plain
    assert "at most" in plain
    _, named, errors = shell(*command, "--dtype", "bfloat16", "--attention", "cudnn")
    assert "about" in named, errors
    assert "at least" not in named
    assert "whole score matrices" in named


def test_a_plan_of_ppo_shows_its_rollout(model, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = (
        "plan", "ppo", "--model", model, "--reward", "a:b", "--devices", "cpu", "--max-prompt-length", 8,
        "--max-new-tokens", 8, "--batch-size", 4,
    )  # fmt: skip
    status, output, errors = shell(*command)
    assert status == 0, errors
    (line,) = (line for line in output.splitlines() if line.startswith("rollout"))
    assert "policy taken apart" in line
    found = json.loads(shell(*command, "--json", "True")[1])
    of_step = sum(found["memory"][name] for name in ("gradients", "activations", "temporary"))
    assert found["total"] == sum(found["memory"].values()) + max(0, sum(found["rollout"].values()) - of_step)


def test_the_flags_for_more_chips_make_the_command_fit(model, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(CHIPS, "v5e", dataclasses.replace(CHIPS["v5e"], memory=110_000, usable=1.0))
    command = (
        "plan", "sft", "--model", model, "--devices", "v5e-1", "--mesh", "data=1", "--max-length", 16, "--batch-size",
        1, "--remat", "full", "--dtype", "bfloat16", "--parameter-dtype", "bfloat16", "--state-dtype", "bfloat16",
    )  # fmt: skip
    status, output, errors = shell(*command)
    assert status == 0, errors
    assert "No change makes it fit 1 v5e." in output
    flags = next(line for line in output.splitlines() if line.startswith("  --devices")).split()
    assert {"--devices", "--mesh", "--batch-size"} <= set(flags)
    status, output, errors = shell(*command, *flags)
    assert status == 0, errors
    assert output.count("a step, of a device") == 1  # nothing more is suggested
    assert "fits:" in output
