"""Find the command, parse its flags, run it, and turn errors into one line and an exit status."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jaxalign
from jaxalign.cli import _plan, _preview
from jaxalign.cli._ending import BAD_INPUT, FAILED, complain, end, said_once
from jaxalign.cli._flags import parse, with_preset, without_aliases
from jaxalign.cli._start import show_start
from jaxalign.errors import InputError, did_you_mean

__all__ = ["main"]


@dataclass(frozen=True)
class _Command:
    """Where a command lives; imported only when it is asked for, so that ``jaxalign --help`` is quick."""

    summary: str
    module: str
    config: str
    run: str


COMMANDS = {
    "sft": _Command("fine-tune on demonstrations", "jaxalign.recipes.sft", "SFTConfig", "run"),
    "dpo": _Command("train on preference pairs: DPO and its variants", "jaxalign.recipes.dpo", "DPOConfig", "run"),
    "reward": _Command(
        "train a reward model on preferences", "jaxalign.recipes.reward_model", "RewardModelConfig", "run"
    ),
    "ppo": _Command("raise a reward, near the start: PPO", "jaxalign.recipes.ppo", "PPOConfig", "run"),
    "hindsight": _Command(
        "train on chains of feedback and outputs: Chain of Hindsight and its baselines",
        "jaxalign.recipes.hindsight",
        "HindsightConfig",
        "run",
    ),
    "collect": _Command(
        "sample answers and have them rated: preferences", "jaxalign.recipes.collect", "CollectConfig", "run"
    ),
    "preview": _Command("show what a recipe learns of its data, and write nothing", _preview.__name__, "", "run"),
    "plan": _Command(
        "will it fit, and how fast: a run's step compiled for any chips, before it runs", _plan.__name__, "", "run"
    ),
    "sample": _Command("write completions of prompts", "jaxalign.cli._sample", "SampleConfig", "run"),
    "judge": _Command("have outputs of two models compared", "", "", ""),
    "evaluate": _Command(
        "measure a run and its completions: tables, figures, one page",
        "jaxalign.cli._evaluate",
        "EvaluateConfig",
        "run",
    ),
    "convert": _Command("read a model, check it, write it anew", "jaxalign.cli._convert", "ConvertConfig", "run"),
    "doctor": _Command("what is here, and what would stop a run", "jaxalign.cli._doctor", "DoctorConfig", "run"),
}

# Commands that have commands of their own.
GROUPS = {
    "judge": {
        "run": _Command(
            "a judge compares: an endpoint, a local model, a reward", "jaxalign.cli._judge", "JudgeConfig", "run"
        ),
        "serve": _Command("people compare: a page for raters", "jaxalign.cli._judge_serve", "ServeConfig", "run_serve"),
        "export": _Command(
            "what people said, as tables, verdicts and preferences",
            "jaxalign.cli._judge_serve",
            "ExportConfig",
            "run_export",
        ),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 wrong input (one line on stderr), 1 the run failed.

    One of several processes that fails ends at once and does not return: at its exit it would wait for the others, and
    they for it.
    """
    try:
        status = _main(list(sys.argv[1:] if arguments is None else arguments))
    except Exception:
        if not _one_of_several():
            raise
        traceback.print_exc()
        status = FAILED
    if status and _one_of_several():
        from jaxalign import sharding

        sharding.abandon_distributed(status)
    return status


def _one_of_several() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _main(arguments: list[str]) -> int:
    # Only its tokenizers are used: that it finds no PyTorch is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.excepthook = said_once
    if not arguments:
        show_start({name: command.summary for name, command in COMMANDS.items()})
        return 0
    if arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(jaxalign.__version__)
        return 0
    name, *flags = arguments
    if name not in COMMANDS:
        known = did_you_mean(name, COMMANDS, what="the commands are")
        return complain("jaxalign", f"unknown command {name!r}; {known}", BAD_INPUT)
    try:
        if name in ("preview", "plan"):
            _run_beside(name, flags)
        elif name in GROUPS:
            _run_member(name, flags)
        else:
            return _run_command(COMMANDS[name], flags, program=f"jaxalign {name}")
    except SystemExit as stop:  # the parser's own, after --help
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    except (Exception, KeyboardInterrupt) as error:
        return end("jaxalign", error)
    return 0


def _configure(
    command: _Command, flags: list[str], *, program: str, config_of: Callable[[type], type] | None = None
) -> tuple[ModuleType, Any]:
    """The module of a command, and its config made of flags, presets and other names of flags."""
    module = importlib.import_module(command.module)
    presets, aliases = getattr(module, "PRESETS", {}), getattr(module, "ALIASES", {})
    flags = with_preset(without_aliases(flags, aliases), presets, getattr(module, "PRESET_YIELDS", {}))
    summary = command.summary
    if presets:
        summary += f". --preset NAME sets several flags at once ({', '.join(presets)}); flags beside it win"
    for other, flag in aliases.items():
        summary += f". {other} is another name of {flag}"
    config = getattr(module, command.config)
    return module, parse(config_of(config) if config_of else config, flags, program=program, summary=summary)


def _run_command(command: _Command, flags: list[str], *, program: str) -> int:
    """The exit status: 0, or what a command that returns one says; recipes return what came out."""
    module, config = _configure(command, flags, program=program)
    found = getattr(module, command.run)(config)
    return found if isinstance(found, int) else 0


def _run_member(group: str, flags: list[str]) -> None:
    """A command of a group; the group alone lists them."""
    members = GROUPS[group]
    if not flags or flags[0] in ("-h", "--help"):
        width = max(map(len, members))
        print(f"usage: jaxalign {group} COMMAND --flags: {COMMANDS[group].summary}\n")
        print("\n".join(f"  jaxalign {group} {name:<{width}}  {one.summary}" for name, one in members.items()))
        print(f"\n  jaxalign {group} COMMAND --help   every flag with its default")
        return
    name, *rest = flags
    if name.startswith("-"):
        raise InputError(f"{group}: name the command first: {', '.join(members)}")
    if name not in members:
        raise InputError(f"{group}: unknown command {name!r}; {did_you_mean(name, members, what='the commands are')}")
    _run_command(members[name], rest, program=f"jaxalign {group} {name}")


def _run_beside(name: str, flags: list[str]) -> None:
    """Preview and plan: a recipe's own config with their flags; what they compute leaves accelerators alone."""
    beside = {"preview": _preview, "plan": _plan}[name]
    recipes = {recipe: COMMANDS[recipe].summary for recipe in beside.RECIPES}
    if flags[:1] in (["-h"], ["--help"]):
        print(beside.usage(recipes))
        return
    recipe = flags[0] if flags else ""
    if not recipe or recipe.startswith("-"):
        raise InputError(f"{name}: name the recipe first: {', '.join(recipes)}")
    if recipe not in recipes:
        raise InputError(f"{name}: unknown recipe {recipe!r}; {did_you_mean(recipe, recipes, what='the recipes are')}")
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator stays with whoever trains on it
    program = f"jaxalign {name} {recipe}"
    module, config = _configure(COMMANDS[recipe], flags[1:], program=program, config_of=beside.config_of)
    try:
        beside.run(config, module.load if name == "preview" else getattr(module, COMMANDS[recipe].config))
        sys.stdout.flush()
    except BrokenPipeError:  # ``| head`` has read enough; nothing is left to fail at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"jaxalign {jaxalign.__version__}: from a pretrained language model to an aligned one, in pure JAX",
        "",
        *(f"  jaxalign {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "  jaxalign COMMAND --help   every flag with its default",
        "",
        "Start here:  jaxalign sft --model FOLDER_OR_HUB_ID --dataset demonstrations.jsonl --output-dir runs/sft",
        "       then  jaxalign dpo --model runs/sft/final --dataset preferences.jsonl --output-dir runs/dpo",
        "        and  jaxalign sample --model runs/dpo/final --prompt 'Once upon a time'",
    ]
    return "\n".join(lines)
