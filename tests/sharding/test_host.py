"""Between host and devices: shard by shard in, row by row or whole out, nothing left behind."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.sharding import make_from_shards, make_mesh, to_host

VALUES = np.arange(8 * 12 * 4, dtype=np.float32).reshape(8, 12, 4)
SPECS = [P(), P("fsdp"), P(None, "tensor"), P("data", "fsdp"), P(None, ("data", "fsdp"), "tensor")]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_distinct_shard_is_read_once(spec, mesh):
    places = []

    def read(index):
        places.append(index)
        return VALUES[index].copy()

    layout = NamedSharding(mesh, spec)
    array = make_from_shards(VALUES.shape, VALUES.dtype, layout, read)
    assert array.sharding == layout
    np.testing.assert_array_equal(array, VALUES)
    assert len(places) == len(set(map(str, places))) == VALUES.size // np.prod(layout.shard_shape(VALUES.shape))


def test_one_device():
    array = make_from_shards(VALUES.shape, VALUES.dtype, None, lambda index: VALUES[index].copy())
    np.testing.assert_array_equal(array, VALUES)
    assert array.devices() == {jax.devices()[0]}


def test_donating_an_array_does_not_write_over_what_its_replicas_share(mesh):
    array = make_from_shards(VALUES.shape, VALUES.dtype, NamedSharding(mesh, P()), lambda index: VALUES[index].copy())
    kept = array.addressable_shards[3].data + 0
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(array)
    np.testing.assert_array_equal(kept, VALUES)
    np.testing.assert_array_equal(doubled, 2 * VALUES)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_to_host(spec, mesh):
    array = jax.device_put(VALUES, NamedSharding(mesh, spec))
    np.testing.assert_array_equal(to_host(array), VALUES)
    for row in (0, 3, 7):
        np.testing.assert_array_equal(to_host(array, row), VALUES[row])


def test_to_host_of_what_lies_on_one_device_or_is_there_already():
    for array in (jnp.asarray(VALUES), VALUES, jnp.asarray(VALUES, jnp.bfloat16)):
        assert to_host(array).dtype == array.dtype
        np.testing.assert_array_equal(to_host(array), np.asarray(array))
        np.testing.assert_array_equal(to_host(array, 5), np.asarray(array)[5])


@pytest.mark.parametrize("row", [None, 1])
def test_to_host_leaves_no_copy_behind(row, mesh):
    """As ``np.asarray`` does, for as long as the array lives."""
    array = jax.device_put(np.ones((2, 1 << 20), np.float32), NamedSharding(mesh, P(None, "fsdp")))
    size = array.nbytes if row is None else array.nbytes // 2
    tracemalloc.start()
    gathered = to_host(array, row)
    held = tracemalloc.get_traced_memory()[0]
    assert held >= size
    del gathered
    assert tracemalloc.get_traced_memory()[0] < held - 0.9 * size
    tracemalloc.stop()
