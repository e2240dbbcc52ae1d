"""The command line that every experiment has."""

import os
import signal
import time
from dataclasses import dataclass

import pytest

from experiments._command import FirstBatch, command


@dataclass(frozen=True)
class Preset:
    """What it does."""

    steps: int = 3
    """Of it."""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_one_says_that_the_same_command_goes_on(tmp_path, capsys, sent, status):
    ended = []

    def run(config, folder, preset):
        try:
            os.kill(os.getpid(), sent)
            time.sleep(60)
        finally:
            ended.append((config.steps, folder, preset))

    main = command("Text.", "coh_toy", {"mini": Preset()}, run, lambda _: FirstBatch())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(["--steps", "5", "--output-dir", str(tmp_path)])
    assert stopped.value.code == status
    assert ended == [(5, tmp_path, "mini")]
    assert capsys.readouterr().err == "coh_toy: stopped; the same command goes on with the stage that was running\n"
    assert signal.getsignal(signal.SIGTERM) == before
