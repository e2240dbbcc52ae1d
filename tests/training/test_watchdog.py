"""Time limits: what hangs is ended and named, what is slow by nature is not."""

import signal
import subprocess
import time

import pytest

from jaxalign.training import TimeLimits, Watchdog
from tests.training.test_resume import start


def watch(limits, act):
    """What a watchdog said while ``act`` ran, or None."""
    said = []
    with Watchdog(limits, said.append) as watchdog:
        act(watchdog, said)
    return said[0] if said else None


def wait_long(said):
    end = time.monotonic() + 30
    while not said and time.monotonic() < end:
        time.sleep(0.01)


def test_a_wait_that_is_too_long_is_named():
    def act(watchdog, said):
        watchdog.wait_for("the devices to finish step 7")
        wait_long(said)

    said = watch(TimeLimits(step=0.2), act)
    assert "waiting for the devices to finish step 7 for more than 0.2 s (--step-timeout)" in said


def test_many_short_waits_are_none_and_slow_things_have_their_own_time():
    def act(watchdog, said):
        for index in range(20):
            watchdog.wait_for(f"step {index}")
            time.sleep(0.05)
        watchdog.wait_for("an evaluation", slow=True)
        time.sleep(1.5)

    assert watch(TimeLimits(step=1.0, slow=60.0), act) is None

    def hang(watchdog, said):
        watchdog.wait_for("an evaluation", slow=True)
        wait_long(said)

    assert "an evaluation for more than 0.3 s (--slow-timeout)" in watch(TimeLimits(step=0.1, slow=0.3), hang)


def test_many_parts_of_a_slow_thing_have_a_time_each_and_one_that_hangs_is_named():
    def act(watchdog, said):
        on_progress = watchdog.wait_for_parts("pairs to be scored")
        for done in range(20):
            on_progress(done, 30)
            time.sleep(0.1)
            assert not said
        wait_long(said)

    said = watch(TimeLimits(step=0.1, slow=1.0), act)
    assert "waiting for pairs to be scored, 19 of 30 done for more than 1 s (--slow-timeout)" in said


def test_the_deadline_runs_from_the_signal():
    def act(watchdog, said):
        watchdog.wait_for("the checkpoint of step 3")
        time.sleep(0.5)
        assert not said
        watchdog.stop_soon()
        wait_long(said)

    assert "not stopped within 0.2 s of the signal (--stop-deadline)" in watch(TimeLimits(stop=0.2), act)


@pytest.mark.parametrize("limits", [TimeLimits(stop=2.0), TimeLimits(step=2.0), TimeLimits(step=60.0, slow=2.0)])
def test_the_end_comes_when_it_is_due(limits):
    """However the thread's looks at the clock fall."""
    took = []

    def act(watchdog, said):
        time.sleep(0.1)
        begin = time.monotonic()
        watchdog.wait_for("an evaluation", slow=limits.slow == 2.0)
        watchdog.stop_soon()
        wait_long(said)
        took.append(time.monotonic() - begin)

    assert watch(limits, act)
    assert 2.0 <= took[0] < 2.3


def test_without_limits_there_is_no_thread():
    watchdog = Watchdog(TimeLimits())
    with watchdog:
        assert not watchdog._thread.is_alive()


@pytest.mark.parametrize("limit", ["--step-timeout", "--stop-deadline"])
def test_a_program_that_hangs_ends(tmp_path, limit):
    """A host callback of step 6 never returns: the process says so, shows its stacks, and a checkpoint is left."""
    process = start(tmp_path, "--hang", 6, limit, 2)
    try:
        if limit == "--stop-deadline":
            end = time.monotonic() + 120
            while not (tmp_path / "hangs").exists() and time.monotonic() < end:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 1, errors
    last = errors.rstrip("\n").splitlines()[-1]
    assert last.startswith("jaxalign: ")
    assert limit in last
    assert "the metrics of step 6 to be written and observed" in last or limit == "--stop-deadline"
    assert "in observe" in errors  # the stack that hangs
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]
