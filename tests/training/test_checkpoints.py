"""Save, damage, restore."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.training import (
    CheckpointError,
    Checkpoints,
    OptimizerConfig,
    check_config,
    fingerprint,
    put_batch,
    state_shapes,
)
from tests.training.helpers import make_batch, make_params, setup

CONFIG = {"learning_rate": 0.1, "max_steps": 10, "model": {"width": 8, "betas": [0.9, 0.99]}}
ADAM = OptimizerConfig(learning_rate=0.1)
EXTRA = {
    "shift": np.float32(0.5),
    "reference": make_params(1),
    "flags": np.asarray([True, False, True]),
    "big": np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32),  # most of a checkpoint's bytes
}


def begin(mesh="fsdp=1"):
    return setup(mesh, optimizer=ADAM, extra=EXTRA)


def advance(step, state, frozen, count):
    for index in range(count):
        state, _ = step(state, frozen, put_batch(make_batch(index), step.mesh))
    return state


def host(state):
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return jax.tree.leaves(jax.device_get(state))


def assert_identical(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 2, 4, 6 made while the state was being donated, and what they must hold."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    step, state, frozen, _, _ = begin()
    expected = {}
    with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
        for index in range(8):
            state, _ = step(state, frozen, put_batch(make_batch(index), step.mesh))
            if index in (1, 3, 5):
                expected[index + 1] = host(state)
                # No wait: the next steps donate the arrays while they are being written.
                checkpoints.save(index + 1, state, position=index + 1, metrics={"loss": float(index)})
        assert checkpoints.steps() == [2, 4, 6]
    return folder, expected


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


def restore(folder, mesh="fsdp=1", config=None, **options):
    _, _, _, optimizer, layout = begin(mesh)
    with Checkpoints(folder, config=config or CONFIG, keep=3, **options) as checkpoints:
        return checkpoints.restore(state_shapes(make_params(), optimizer, extra=EXTRA), layout)


@pytest.mark.parametrize("mesh", ["fsdp=1", "fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_bit_for_bit_on_any_mesh(saved, folder, mesh):
    restored = restore(folder, mesh)
    assert_identical(host(restored.state), saved[1][6])
    assert (restored.step, restored.position, restored.metrics, restored.config) == (6, 6, {"loss": 5.0}, CONFIG)
    _, _, _, _, layout = begin(mesh)
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, restored.state, layout))
    assert jnp.issubdtype(restored.state.key.dtype, jax.dtypes.prng_key)


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restore(tmp_path / "none") is None


def test_old_checkpoints_go_and_no_pickle_is_written(saved, tmp_path):
    step, state, frozen, _, _ = begin()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for count in (1, 2, 3, 4):
            state = advance(step, state, frozen, 1)
            checkpoints.save(count, state, position=count)
            checkpoints.save(count, state, position=count)  # the same step again: nothing happens
    assert Checkpoints(tmp_path).steps() == [3, 4]
    # A pickle of protocol 2 and later starts with 0x80 and its protocol, and ends with a full stop.
    for path in saved[0].rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not (data[:1] == b"\x80" and data[1:2] <= b"\x05" and data[-1:] == b"."), path


@pytest.mark.parametrize("anew", [False, True], ids=["nothing", "another folder"])
def test_where_the_folder_went_nothing_is_written(tmp_path, anew):
    """As of a disk that is no longer there: what lies at its path now is not the run's."""
    step, state, frozen, _, _ = begin()
    place, away = tmp_path / "run", tmp_path / "away"
    with Checkpoints(place) as checkpoints:
        state = advance(step, state, frozen, 1)
        checkpoints.save(1, state, position=1)
        checkpoints.wait()
        place.rename(away)
        if anew:
            place.mkdir()
        with pytest.raises(CheckpointError, match=r"run: .*the folder is gone"):
            checkpoints.save(2, state, position=2)
    assert not place.exists() or not any(place.iterdir())
    assert Checkpoints(away).steps() == [1]


def test_a_folder_made_anew_is_another(tmp_path):
    """Although a file system may give it the number of the one that was removed, as ext4 does."""
    step, state, frozen, _, _ = begin()
    place = tmp_path / "run"
    checkpoints = Checkpoints(place)
    shutil.rmtree(place)
    place.mkdir()
    with pytest.raises(CheckpointError, match=r"run: .*the folder is gone"):
        checkpoints.save(1, advance(step, state, frozen, 1), position=1)
    checkpoints.close()
    assert not any(place.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing here says which files are open")
def test_closed_checkpoints_hold_no_folder(tmp_path):
    def held():
        return [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(tmp_path)]

    with Checkpoints(tmp_path) as checkpoints:
        assert len(held()) == 1
    checkpoints.close()
    assert not held()


def biggest(folder, step):
    files = (path for path in (folder / str(step)).rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(folder, step):
    """One bit in the middle of the largest file: the reader does not notice, the checksum does."""
    path = biggest(folder, step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(folder, step):
    path = biggest(folder, step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(folder, step):
    biggest(folder, step).unlink()


def no_metadata(folder, step):
    for path in (folder / str(step)).rglob("*METADATA*"):
        path.unlink()


def no_config(folder, step):
    shutil.rmtree(folder / str(step) / "notes")


def empty(folder, step):
    shutil.rmtree(folder / str(step))
    (folder / str(step)).mkdir()


@pytest.mark.parametrize("damage", [flip, cut, lose, no_metadata, no_config, empty])
def test_a_damaged_newest_falls_back(saved, folder, damage, caplog):
    damage(folder, 6)
    with caplog.at_level(logging.WARNING, "jaxalign.training"):
        restored = restore(folder)
    assert restored.step == 4
    assert_identical(host(restored.state), saved[1][4])
    (record,) = [record for record in caplog.records if record.name.startswith("jaxalign.training")]
    assert "checkpoint 6 is damaged" in record.getMessage()
    assert (folder / "damaged-6").exists()
    # The run goes on, saves step 6 again, and it is whole.
    step, _, frozen, _, _ = begin()
    with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        checkpoints.save(6, advance(step, restored.state, frozen, 2), position=6)
    assert restore(folder).step == 6


def test_the_second_damage_of_one_step_has_a_name_of_its_own(saved, folder):
    """The first is kept as it was."""
    for name in ("damaged-6", "damaged-6-2", "damaged-6-3"):
        flip(folder, 6)
        before = biggest(folder, 6).read_bytes()
        restored = restore(folder)
        assert restored.step == 4
        assert biggest(folder, name).read_bytes() == before
        with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
            assert checkpoints.steps() == [2, 4]
        shutil.copytree(saved[0] / "6", folder / "6")
    assert restore(folder).step == 6
    assert sorted(path.name for path in folder.glob("damaged-*")) == ["damaged-6", "damaged-6-2", "damaged-6-3"]


def test_all_damaged_is_an_error_and_touches_nothing(folder):
    for step in (2, 4, 6):
        lose(folder, step)
    with pytest.raises(InputError, match=r"no checkpoint can be read \(2, 4, 6\)"):
        restore(folder)
    assert Checkpoints(folder).steps() == [2, 4, 6]


def test_a_half_written_checkpoint_is_not_seen(folder):
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    assert restore(folder).step == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.2}, "--learning-rate is 0.2, but"),
        ({"model": {"width": 9, "betas": [0.9, 0.99]}}, "--width is 9, but"),
        ({"model": {"width": 8, "betas": [0.9, 0.9]}}, "--betas"),
        ({"beta": 0.1}, "--beta is 0.1"),
    ],
)
def test_a_changed_config_is_an_error_that_names_the_flag(folder, change, message):
    with pytest.raises(InputError) as caught:
        restore(folder, config=CONFIG | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_some_flags_may_change(folder):
    assert restore(folder, config=CONFIG | {"max_steps": 99, "save_every": 3}).step == 6
    assert restore(folder, config=CONFIG | {"learning_rate": 1.0}, may_change=("learning_rate",)).step == 6


def test_tuples_and_lists_are_the_same_config():
    check_config({"a": [1, 2]}, {"a": [1, 2]})
    with pytest.raises(InputError, match="--a-b"):
        check_config({"a_b": 1}, {})


def test_a_flag_is_named_before_the_data_that_changed_with_it():
    with pytest.raises(InputError, match="--seed is 2"):
        check_config({"seed": 1, "a hash": "x"}, {"seed": 2, "a hash": "y"})
    with pytest.raises(InputError, match="the run was started with other a hash"):
        check_config({"seed": 1, "a hash": "x"}, {"seed": 1, "a hash": "y"})


def test_another_models_checkpoint_is_refused(folder):
    _, _, _, optimizer, layout = begin()
    shapes = state_shapes(make_params(), optimizer, extra=EXTRA)
    wide = dataclasses.replace(shapes, step=jax.ShapeDtypeStruct((), jnp.uint32))
    deep = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), shapes)
    less = dataclasses.replace(shapes, extra={})
    messages = [
        (wide, layout, r"\.step is uint32\[\] now, and int32\[\] in checkpoint 6"),
        (deep, layout, r"\.extra\['big'\] is float32\[2, 128, 256\] now, and float32\[128, 256\] in checkpoint 6"),
        (less, dataclasses.replace(layout, extra={}), r"\.extra\['big'\] is absent now"),
    ]
    with Checkpoints(folder, config=CONFIG, keep=3) as checkpoints:
        for like, shardings, message in messages:
            with pytest.raises(InputError, match=message):
                checkpoints.restore(like, shardings)
        assert checkpoints.steps() == [2, 4, 6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint32", "bool", "float64", "int64"])
def test_the_fingerprint_sees_every_bit_and_every_place(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        value = np.asarray(jnp.asarray(rng.integers(0, 2 if dtype == "bool" else 100, (5, 3, 4))).astype(dtype))
        before = fingerprint({"x": value})
        assert fingerprint({"x": jnp.asarray(value)}) == before
        bits = value.copy().view(np.uint8).reshape(-1)
        for place in range(bits.size):
            for bit in range(1 if dtype == "bool" else 8):
                bits[place] ^= 1 << bit
                changed = bits.view(value.dtype).reshape(value.shape)
                if dtype == "bool" or (place * 8 + bit) % 7 == 0:
                    assert fingerprint({"x": changed}) != before
                bits[place] ^= 1 << bit
        assert fingerprint({"x": np.roll(value, 1, axis=0)}) != before
        assert fingerprint({"y": value}) != before


def test_the_fingerprint_is_the_same_on_every_mesh():
    prints = [fingerprint(begin(mesh)[1]) for mesh in ("fsdp=1", "fsdp=8", "data=2,tensor=4")]
    assert prints[0] == prints[1] == prints[2]
