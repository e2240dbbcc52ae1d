import jax
import pytest
from jax.sharding import AxisType

from jaxalign.errors import InputError
from jaxalign.sharding import MESH_AXES, make_mesh, parse_mesh


def shape(mesh):
    return tuple(mesh.shape[axis] for axis in MESH_AXES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (1, 8, 1, 1)),
        ("data=1,fsdp=8,tensor=1", (1, 8, 1, 1)),
        ("tensor=4, data=2", (2, 1, 4, 1)),
        ("data=-1,tensor=2", (4, 1, 2, 1)),
        ("fsdp=1", (1, 1, 1, 1)),
        ("data=2,fsdp=2,tensor=2", (2, 2, 2, 1)),
        ("data=1,fsdp=2,tensor=1,sequence=4", (1, 2, 1, 4)),
        ("fsdp=2,sequence=-1", (1, 2, 1, 4)),
    ],
)
def test_parse(text, expected):
    mesh = parse_mesh(text)
    assert mesh.axis_names == MESH_AXES
    assert shape(mesh) == expected
    assert all(kind == AxisType.Auto for kind in mesh.axis_types)


def test_a_smaller_mesh_uses_the_first_devices():
    assert list(parse_mesh("fsdp=2").devices.flat) == jax.devices()[:2]
    assert list(make_mesh(devices=jax.devices()[4:6]).devices.flat) == jax.devices()[4:6]


def test_pieces_of_a_row_lie_on_neighbouring_devices():
    mesh = make_mesh(1, 2, 1, 4)
    assert mesh.devices[0, 0, 0].tolist() == jax.devices()[:4]
    assert shape(make_mesh(data=2, fsdp=1, sequence=4)) == (2, 1, 1, 4)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model=8", "unknown axis 'model'; the axes are data, fsdp, tensor, sequence"),
        ("dta=8", "unknown axis 'dta'; did you mean 'data'?"),
        ("sequence=16", "--mesh sequence=16 needs 16 devices, but there are 8"),
        ("data", "data"),
        ("data=two", "'two'"),
        ("data=2,data=2", "twice"),
        ("data=0", "positive"),
        ("data=-2", "positive"),
        ("data=-1,fsdp=-1", "at most one"),
        ("data = 16, tensor=1", "--mesh data = 16, tensor=1 needs 16 devices, but there are 8"),
        ("data=-1,tensor=3", "3 does not divide"),
    ],
)
def test_bad_meshes_are_named(text, word):
    with pytest.raises(InputError, match="--mesh") as caught:
        parse_mesh(text)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
