"""docs/: its code runs as it stands, its commands parse, its links lead somewhere.

Pages with code are run by ``tests.run_pages``, all in one process; two have a test of their own, with a server or with
checks of what they print.
"""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from jaxalign import recipes
from jaxalign.cli import _main, _plan, _preview
from jaxalign.cli._flags import _names
from tests.markdown import DOCS, PAGES, ROOT, RUN, SHOWN, anchors, blocks, links, parsed_commands, prose, shell

RUN_ELSEWHERE = {
    "evaluation.md": "tests/evaluation/test_docs.py",
    "judges.md": "tests/evaluation/judges/test_docs.py",
}
WITH_CODE = [
    str(page.relative_to(DOCS))
    for page in PAGES
    if any(block.language in RUN and not block.not_run for block in blocks(page))
]
HERE = [page for page in WITH_CODE if page not in RUN_ELSEWHERE]
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    pytest.param(arguments, id=place)
    for page in [ROOT / "README.md", *PAGES]
    for place, arguments in parsed_commands(page)
]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# What stands for flags that a line leaves out, as "...".
LEFT_OUT = {
    "dpo": ["--model", "M", "--dataset", "D", "--output-dir", "O"],
    "judge": ["--pairs", "P", "--store", "S"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """How the pages ended: null, or what went wrong."""
    folder = tmp_path_factory.mktemp("docs")
    shell([sys.executable, "-m", "tests.run_pages", str(folder), *HERE], ROOT)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("page", HERE)
def test_every_block_runs_as_it_is_written(results: dict[str, str | None], page: str):
    assert results[page] is None, results[page]


def test_pages_run_elsewhere_are():
    for page, test in RUN_ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / test).read_text(), test
    assert set(RUN_ELSEWHERE) <= set(WITH_CODE)


def test_every_method_has_code_and_a_command_and_every_how_to_something_to_run():
    for page in (DOCS / "methods").glob("*.md"):
        assert {"python", "bash"} <= {block.language for block in blocks(page)}, page
    for page in (DOCS / "how-to").glob("*.md"):
        assert str(page.relative_to(DOCS)) in HERE


def test_every_block_is_of_a_kind_and_few_are_not_run():
    for block in BLOCKS:
        assert block.language in (*RUN, *SHOWN), f"{block.place}: {block.language!r} is neither run nor shown"
    # Those of pods.md need a TPU slice, a Slurm cluster or a Kubernetes cluster.
    not_run = [block for block in BLOCKS if block.not_run]
    assert {block.page.name for block in not_run} == {"pods.md"}
    assert len(not_run) == 8


def test_shell_blocks_that_are_not_run_are_shell():
    for block in BLOCKS:
        if block.language == "bash" and block.not_run:
            shell(["bash", "-n", "-c", block.text], ROOT)
            for file in re.findall(r"\blaunch/[\w.]+", block.text):
                assert (ROOT / file).is_file(), f"{block.place}: {file}"


class _Parsed(BaseException):
    """The command line was read; the command is not to run."""


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_other_command_parses(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    configure = _main._configure

    def configure_alone(*given, **named):
        configure(*given, **named)
        raise _Parsed

    monkeypatch.setattr(_main, "_configure", configure_alone)
    if "..." in arguments:
        at = arguments.index("...")
        arguments = [*arguments[:at], *LEFT_OUT[arguments[0]], *arguments[at + 1 :]]
    try:
        status = _main.main(arguments)
    except _Parsed:
        return
    pytest.fail(f"status {status}: {capsys.readouterr().err}")


def _flags(command: str) -> set[str]:
    """The flags of a command; of one that has others below it, theirs."""
    if command in ("preview", "plan"):
        beside = {"preview": _preview, "plan": _plan}[command]
        return {
            name for recipe in beside.RECIPES for name, _ in _names(beside.config_of(_config(_main.COMMANDS[recipe])))
        }
    found: set[str] = set()
    for member in _main.GROUPS.get(command, {command: _main.COMMANDS[command]}).values():
        module = importlib.import_module(member.module)
        found |= {name for name, _ in _names(_config(member))} | set(getattr(module, "ALIASES", {}))
        found |= {"--preset"} if getattr(module, "PRESETS", {}) else set()
    return found


def _config(command: _main._Command) -> type:
    return getattr(importlib.import_module(command.module), command.config)


def test_flags_in_the_table_for_trl_users_are_those_of_the_recipes():
    page = prose(DOCS / "how-to" / "from-trl.md")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    commands = [found[1] for section in sections if (found := re.match(r".*`jaxalign (\w+)`", section))]
    assert commands == ["sft", "dpo", "reward", "ppo"]
    for section in sections:
        own = re.match(r".*`jaxalign (\w+)`", section)
        rows = [row.split(" | ") for row in section.splitlines() if row.startswith("| ")][1:]
        named = {flag for row in rows for cell in row[1:] for flag in re.findall(r"`(--[\w-]+)", cell)}
        assert len(named) >= 4
        for command in [own[1]] if own else ["sft", "dpo", "reward"]:
            assert named <= _flags(command), f"{command}: {sorted(named - _flags(command))}"


FOREIGN = {
    "pods.md": {"--uniform-bucket-level-access", "--enable-hierarchical-namespace", "--ntasks-per-node"},
    "faults.md": {"--steps"},
}
"""Flags of other programs: of gcloud and Slurm, and of ``python -m tests.faults``."""


# Without those that name flags of benchmarks' own programs, and flags that are no more.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("benchmarks.md", "decisions.md")],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_flags_named_in_the_text_exist(page: Path):
    known = {"--help"}.union(*(_flags(command) for command in _main.COMMANDS), FOREIGN.get(page.name, ()))
    for command, code in re.findall(r"`(?=--|jaxalign )(?:jaxalign (\w+) )?([^`]+)`", prose(page)):
        named = set(FLAG.findall(code))
        own = _flags(command) | {"--help"} if command else known
        assert named <= own, f"{command}: {sorted(named - own)}"


def test_the_table_of_the_dpo_family_is_whole():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)?) \|", prose(DOCS / "methods" / "dpo.md"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == set(recipes.LOSSES)


@pytest.mark.parametrize(
    "page",
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md", "notebooks/README.md")),
        *PAGES,
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_names_every_page():
    index = DOCS / "README.md"
    named = {(DOCS / link.partition("#")[0]).resolve() for link in links(index)}
    missing = {page for page in PAGES if page != index} - named
    assert not missing, sorted(missing)
