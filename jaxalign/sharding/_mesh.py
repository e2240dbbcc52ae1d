"""The device mesh: four named axes, always the same, whatever the number of devices."""

import logging
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxalign.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
"""data: rows are split, parameters copied; fsdp: rows and parameters are split; tensor: layers' widths are split;
sequence: the tokens of a row are split."""


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the mesh ``("data", "fsdp", "tensor", "sequence")`` with automatic (compiler-propagated) axes.

    At most one size may be -1: it takes all the devices that the others leave. A mesh smaller than the device count
    uses the first devices, which is refused on several processes, where some process would hold no device.

    Args:
        data: number of data-parallel groups, each with a whole copy of the (fsdp x tensor sharded) parameters.
        fsdp: number of shards of parameters, optimizer state and rows.
        tensor: number of shards of heads, MLP width and vocabulary.
        sequence: number of pieces of every row of tokens; neighbours in a row are neighbours in the order of devices.
        devices: the devices to use; all of them if None.

    Raises:
        InputError: if a size is neither positive nor -1, two are -1, or the product does not fit the devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
    text = ",".join(f"{name}={size}" for name, size in sizes.items() if name != "sequence" or size != 1)
    return _lay_out(sizes, text, devices)


def _lay_out(given: Mapping[str, int], text: str, devices: Sequence[jax.Device] | None) -> Mesh:
    """The mesh of these sizes; ``text`` is what errors call it, as it was written."""
    sizes = dict(given)
    available = list(jax.devices() if devices is None else devices)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if any(size < 1 and size != -1 for size in sizes.values()) or len(open_axes) > 1:
        raise InputError(f"--mesh {text}: sizes must be positive, and at most one may be -1")
    product = 1
    for size in sizes.values():
        product *= max(size, 1)
    if open_axes:
        if len(available) % product:
            raise InputError(f"--mesh {text}: {product} does not divide the {len(available)} devices")
        sizes[open_axes[0]] = len(available) // product
        product = len(available)
    if product > len(available):
        raise InputError(f"--mesh {text} needs {product} devices, but there are {len(available)}")
    if product < len(available):
        if jax.process_count() > 1:
            raise InputError(f"--mesh {text} uses {product} of {len(available)} devices; several processes need all")
        logger.info("mesh %s uses %d of %d devices", text, product, len(available))
    shape = tuple(sizes[name] for name in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=available[:product])


def parse_mesh(text: str, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh written as ``"data=1,fsdp=2,sequence=4"``; an axis not named has size 1; -1 takes the rest.

    The empty string is the default mesh: all devices on ``fsdp``.

    Raises:
        InputError: if an axis is unknown, repeated or not an integer, or the sizes do not fit the devices.
    """
    if not text.strip():
        return make_mesh(devices=devices)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals and name not in MESH_AXES:
            known = did_you_mean(name, MESH_AXES, what="the axes are")
            raise InputError(f"--mesh {text}: unknown axis {name!r}; {known}")
        if not equals:
            raise InputError(f"--mesh {text}: {part.strip()!r} is not one of data=N, fsdp=N, tensor=N, sequence=N")
        if name in sizes:
            raise InputError(f"--mesh {text}: {name} is given twice")
        try:
            sizes[name] = int(value)
        except ValueError:
            raise InputError(f"--mesh {text}: {value!r} is not an integer") from None
    return _lay_out(dict.fromkeys(MESH_AXES, 1) | sizes, text, devices)
