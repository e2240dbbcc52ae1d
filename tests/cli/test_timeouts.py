"""What hangs before the loop or after it ends the run with a reason too, where there is a limit."""

import os
import time
import types

import pytest

from jaxalign import models, training
from jaxalign.cli import main


class Ended(BaseException):
    """The process would have ended here."""


@pytest.fixture(scope="module")
def finished(model, files, tmp_path_factory):
    """Runs of one step, by recipe: the command, which run again only reads the checkpoint and writes the model."""

    def make(recipe, dataset):
        folder = tmp_path_factory.mktemp(recipe)
        flags = [
            recipe, "--model", str(model), "--dataset", str(files[dataset]), "--output-dir", str(folder),
            "--batch-size", "4", "--mesh", "data=1", "--max-steps", "1",
        ]  # fmt: skip
        assert main(flags) == 0
        return flags

    return {"sft": make("sft", "demonstrations"), "reward": make("reward", "pairs")}


@pytest.fixture
def statuses(monkeypatch):
    """The statuses that a watchdog would have ended this process with."""
    found = []
    ends = types.SimpleNamespace(write=os.write, _exit=found.append)
    monkeypatch.setattr("jaxalign.training._watchdog.os", ends)
    return found


@pytest.mark.parametrize(
    ("recipe", "owner", "name", "what"),
    [
        ("sft", training.Checkpoints, "restore", "the newest checkpoint in FOLDER to be read"),
        ("sft", models, "save_pretrained", "FOLDER/final to be written"),
        ("reward", models, "save_reward_model", "FOLDER/final to be written"),
    ],
)
def test_what_hangs_is_named(recipe, owner, name, what, finished, statuses, monkeypatch, capfd):
    def hang(*_, **__):
        for _ in range(600):
            if statuses:
                raise Ended
            time.sleep(0.1)
        pytest.fail("nothing has ended it")

    monkeypatch.setattr(owner, name, hang)
    with pytest.raises(Ended):
        main([*finished[recipe], "--step-timeout", "60", "--slow-timeout", "6"])
    assert statuses == [1]
    errors = capfd.readouterr().err
    folder = finished[recipe][finished[recipe].index("--output-dir") + 1]
    said = f"jaxalign: waiting for {what.replace('FOLDER', folder)} for more than 6 s (--slow-timeout): it hangs"
    assert errors.splitlines()[-1].startswith(said)
    assert "in hang" in errors  # its stack


def test_what_takes_long_is_left_alone_where_nothing_is_watched(finished, statuses):
    assert main([*finished["sft"], "--slow-timeout", "0.001"]) == 0
    assert not statuses
