"""Two processes restore one checkpoint, or end together: what one of them cannot read is damaged for both."""

import dataclasses
import errno
import json
import logging
import shutil
import sys
from pathlib import Path

import jax
import pytest

from tests.processes import run_together

STEPS = (2, 4, 6)


def restored(port, process, count, folder):
    """One of two processes, a device each: save three checkpoints, restore copies of them of which one is spoilt."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
    jax.config.update("jax_num_cpu_devices", 1)
    from jaxalign import sharding
    from jaxalign.errors import InputError
    from jaxalign.training import Checkpoints, fingerprint, state_shapes
    from tests.training.test_checkpoints import CONFIG, EXTRA, begin, make_params

    sharding.initialize_distributed(f"localhost:{port}", count, process)
    _, first, _, optimizer, layout = begin("fsdp=2")
    shapes = state_shapes(make_params(), optimizer, extra=EXTRA)
    advance = jax.jit(
        lambda state: dataclasses.replace(state, params=jax.tree.map(lambda leaf: 2 * leaf, state.params))
    )
    states = {}
    with Checkpoints(Path(folder) / "whole", config=CONFIG, keep=3) as checkpoints:
        for step in STEPS:
            states[step] = first = advance(first)
            checkpoints.save(step, first, position=step)

    def trial(name, failing=()):
        """Restore a copy; ``failing``: which process cannot read which step, and why."""
        copy = Path(folder) / name
        if process == 0:
            shutil.copytree(Path(folder) / "whole", copy)
            if name == "view":  # what the second process sees
                spoilt = shutil.copytree(copy, Path(folder) / "spoilt")
                parts = (path for path in (spoilt / "6" / "state" / "ocdbt.process_1").rglob("*") if path.is_file())
                path = max(parts, key=lambda path: path.stat().st_size)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        sharding.exchange(name)

        class Failing(Checkpoints):
            def _reader(self):
                own = self.directory
                if (name, process) == ("view", 1):
                    self.directory = Path(folder) / "spoilt"
                reader, self.directory = super()._reader(), own
                restore = reader.restore

                def read(step, **options):
                    for who, which, error in failing:
                        if (who, which) == (process, step):
                            raise error
                    return restore(step, **options)

                reader.restore = read
                return reader

        with Failing(copy, config=CONFIG, keep=3) as checkpoints:
            try:
                found = checkpoints.restore(shapes, layout)
            except (InputError, OSError) as error:
                told = f"{type(error).__name__}: {error}"
            else:
                told = found.step
                assert fingerprint(found.state) == fingerprint(states[found.step])
                # The run goes on, saves the step again, and it is whole.
                checkpoints.save(6, states[6], position=6)
                checkpoints.wait()
            steps = checkpoints.steps()
        if isinstance(told, int):
            with Checkpoints(copy, config=CONFIG, keep=3) as checkpoints:
                assert checkpoints.restore(shapes, layout).step == 6
        return [told, steps]

    bad, denied = OSError("bad sector"), OSError(errno.EACCES, "Permission denied")
    trials = {
        "view": trial("view"),
        "first": trial("first", [(0, 6, bad)]),
        "each": trial("each", [(1, 6, bad), (0, 4, bad)]),
        "all": trial("all", [(1, 6, bad), (0, 4, bad), (0, 2, bad), (1, 2, bad)]),
        "denied": trial("denied", [(1, 6, denied)]),
    }
    print(json.dumps(trials))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder, and what each process printed."""
    folder = tmp_path_factory.mktemp("together")
    outputs = run_together("tests.training.test_checkpoints_together:restored", 2, folder, timeout=300)
    return folder, [output.splitlines() for output in outputs]


def test_what_one_finds_damaged_is_damaged_for_all(run):
    folder, (first, second) = run
    trials = [json.loads(lines[-1]) for lines in (first, second)]
    for found in trials:
        assert found["view"] == found["first"] == [4, [2, 4, 6]]
    for name in ("view", "first"):
        assert (folder / name / "damaged-6").is_dir()


def test_one_says_so_with_the_name_of_the_one_that_found_it(run):
    folder, (first, second) = run
    said = [line for line in first if "is damaged" in line]
    assert f"{folder / 'view'}: checkpoint 6 is damaged, trying the one before: process 1: " in said[0]
    assert f"{folder / 'first'}: checkpoint 6 is damaged, trying the one before: process 0: bad sector" == said[1]
    assert not any("is damaged" in line for line in second)


def test_each_may_find_another_one_damaged(run):
    folder, outputs = run
    for lines in outputs:
        assert json.loads(lines[-1])["each"][0] == 2
    assert sorted(path.name for path in (folder / "each").iterdir() if "damaged" in path.name) == [
        "damaged-4",
        "damaged-6",
    ]


def test_where_none_is_whole_for_all_they_end_together_and_touch_nothing(run):
    folder, outputs = run
    for lines in outputs:
        told, steps = json.loads(lines[-1])["all"]
        assert told == (
            f"InputError: {folder / 'all'}: no checkpoint can be read (2, 4, 6); the newest: process 1: bad sector"
        )
        assert steps == list(STEPS)


def test_no_permission_is_no_damage(run):
    folder, outputs = run
    told = [json.loads(lines[-1])["denied"] for lines in outputs]
    assert told[1] == ["PermissionError: [Errno 13] Permission denied", list(STEPS)]
    assert told[0] == ["InputError: process 1: [Errno 13] Permission denied", list(STEPS)]
    assert not list((folder / "denied").glob("damaged-*"))
