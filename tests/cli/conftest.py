"""A model folder and small files, made once."""

import pytest

from tests.recipes import toy


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return toy.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """``pairs``, ``ranked``, ``demonstrations``: eight, three and eight good rows."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"pairs": toy.pair_records(), "ranked": toy.ranked_records(), "demonstrations": toy.demonstrations()}
    return {name: toy.write_jsonl(folder / f"{name}.jsonl", records) for name, records in rows.items()}


@pytest.fixture
def shell(capsys):
    """``main`` as a shell sees it: (exit status, standard output, standard error)."""
    from jaxalign.cli import main

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def refused(shell):
    """The one line that a command is refused with: exit status 2, nothing else said, no traceback."""

    def run(*arguments):
        status, output, errors = shell(*arguments)
        lines = [line for line in errors.splitlines() if line.startswith("jaxalign: ")]
        assert status == 2, errors
        assert not output
        assert len(lines) == 1
        assert errors.endswith(f"{lines[0]}\n")
        assert "Traceback" not in errors
        return lines[0].removeprefix("jaxalign: ")

    return run
