"""The fault suite in short; ``make faults`` is the long one."""

import pytest

from tests.faults.harness import Launcher
from tests.faults.scenarios import Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    with (
        Launcher() as launcher,
        Suite.opened(launcher, tmp_path_factory.mktemp("faults"), "sft", steps=200, save_every=4) as opened,
    ):
        yield opened


def test_killed(suite):
    row = suite.kills(4)
    assert row.disturbances == 4


def test_a_damaged_newest_checkpoint(suite):
    row = suite.damages(2)
    assert row.disturbances == 2


def test_signals(suite):
    row = suite.signals(2)
    assert row.lost == [0, 0]


def test_a_full_disk(suite):
    row = suite.full_disk(1)
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.moments == {"No space left on device": 1}


@pytest.mark.parametrize("name", ["file_size", "no_permission", "gone"])
def test_a_folder_that_cannot_be_written(suite, name):
    row = getattr(suite, name)()
    assert row.disturbances in (1, 2)
