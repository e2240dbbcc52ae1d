"""Every file of a checkpoint, a bit flipped in it or its end cut off: what is restored is true, or older."""

import gc
import logging
import random
import re
import shutil
import warnings

import jax
import pytest

from jaxalign.training import Checkpoints, fingerprint, state_shapes
from tests.training.test_checkpoints import CONFIG, EXTRA, advance, begin, make_params
from tests.training.test_checkpoints import saved as saved


def flip(path, source):
    content = bytearray(path.read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def cut(path, source):
    path.write_bytes(path.read_bytes()[: source.randrange(path.stat().st_size)])


@pytest.mark.parametrize("damage", [flip, cut])
def test_no_damage_to_any_file_changes_a_run(saved, tmp_path, damage):
    _, _, _, optimizer, layout = begin()
    shapes = state_shapes(make_params(), optimizer, extra=EXTRA)
    source, noticed = random.Random(0), set()
    pristine = {}
    for step in (4, 6):
        only = tmp_path / f"only-{step}"
        shutil.copytree(saved[0] / str(step), only / str(step))
        with Checkpoints(only, config=CONFIG, keep=3) as checkpoints:
            pristine[step] = checkpoints.restore(shapes, layout)
    files = [path for path in sorted((saved[0] / "6").rglob("*")) if path.is_file() and path.stat().st_size]
    places = [path.relative_to(saved[0]) for path in files]
    assert len(places) >= 10
    for number, place in enumerate(places):
        folder = shutil.copytree(saved[0], tmp_path / str(number))
        damage(folder / place, source)
        with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
            restored = checkpoints.restore(shapes, layout)
        assert restored.step in (4, 6), place
        expected = pristine[restored.step]
        for name in ("step", "position", "config", "metrics", "evaluation_due"):
            assert getattr(restored, name) == getattr(expected, name), place
        assert fingerprint(restored.state) == fingerprint(expected.state), place
        shutil.rmtree(folder)
        if restored.step == 4:
            noticed.add(place.parts[1])
    # The others hold nothing that a run reads: marks of completeness, where arrays lay, when they were saved.
    assert noticed == {"notes", "state"}


@pytest.mark.parametrize("place", ["state/array_metadatas/process_0", "an array"])
def test_one_line_says_what_is_damaged_and_nothing_comes_after_it(saved, tmp_path, place, caplog, capfd):
    """Of the many reads that are under way where one fails, no other says anything."""
    folder = shutil.copytree(saved[0], tmp_path / "c")
    files = [path for path in (folder / "6" / "state").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size) if place == "an array" else folder / "6" / place
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, _, _, optimizer, layout = begin("fsdp=8")
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned, Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
        warnings.simplefilter("always")
        assert checkpoints.restore(state_shapes(make_params(), optimizer, extra=EXTRA), layout).step == 4
        gc.collect()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    said = record.getMessage()
    assert said.startswith(f"{folder}: checkpoint 6 is damaged, trying the one before: ")
    if place == "an array":  # the largest
        assert '"extra.big/0.0"' in said
        assert "Requested byte range" in said
    assert "\n" not in said
    assert not [str(one.message) for one in warned if "awaited" in str(one.message)]
    assert "loop" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["position", "learning_rate", "loss", "checksums"])
def test_a_digit_that_reads_well_but_is_another(saved, tmp_path, name):
    """A position, a learning rate, a metric, a checksum: valid JSON, another run."""
    folder = shutil.copytree(saved[0], tmp_path / "c")
    path = folder / "6" / "notes" / "metadata"
    text = path.read_text()
    place = re.compile(r"[1-9]").search(text, text.index(f'"{name}"')).start()
    path.write_text(text[:place] + ("8" if text[place] == "9" else "9") + text[place + 1 :])
    _, _, _, optimizer, layout = begin()
    with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
        assert checkpoints.restore(state_shapes(make_params(), optimizer, extra=EXTRA), layout).step == 4


def test_from_eight_devices_to_four_to_one(tmp_path):
    """Each mesh restores, to the bit, what the one before it saved."""
    shapes = state_shapes(make_params(), begin()[3], extra=EXTRA)
    before = None
    for number, mesh in enumerate(("data=2,fsdp=4", "fsdp=2,tensor=2", "fsdp=1")):
        step, state, frozen, _, layout = begin(mesh)
        with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
            restored = checkpoints.restore(shapes, layout)
            if restored is not None:
                assert (restored.step, fingerprint(restored.state)) == (number, before)
                state = restored.state
            assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(state.params)} == {step.mesh.size}
            state = advance(step, state, frozen, 1)
            checkpoints.save(number + 1, state, position=number + 1)
            before = fingerprint(state)
    assert before is not None
