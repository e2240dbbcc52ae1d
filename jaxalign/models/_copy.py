"""Host copies between layouts: what loading and saving spend their time on."""

import itertools
import mmap
from typing import Any

import numpy as np

TILE = 128  # elements a side: both sides of a tile stay in a core's cache
SMALL = 4 << 20  # bytes; up to here the cache takes care of itself
ALIGNMENT = 64  # bytes; XLA's CPU backend uses buffers aligned so as they are


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that ``jax.device_put`` need not copy on a CPU.

    A large one lies in pages of its own, of the system's common size. numpy asks for huge pages, and a virtual machine
    that gives free ones back to its host waits for every one of them: filling 0.5 GB took 1.4 s there instead of 0.2 s.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size > SMALL and hasattr(mmap, "MAP_PRIVATE"):
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(pages, dtype).reshape(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source`` (C-contiguous target, casting), a large transposed source tile by tile.

    numpy walks a transposed matrix along one side's rows and so misses the cache at every element of the other's.
    """
    fast = min(range(source.ndim), key=lambda axis: (source.shape[axis] == 1, abs(source.strides[axis])), default=0)
    last = source.ndim - 1
    if source.ndim < 2 or fast == last or source.nbytes <= SMALL or min(source.shape[fast], source.shape[last]) < 32:
        target[...] = source
        return
    steps = [TILE if axis in (fast, last) else 1 for axis in range(source.ndim)]
    starts = (range(0, size, step) for size, step in zip(source.shape, steps, strict=True))
    for corner in itertools.product(*starts):
        tile = tuple(slice(start, start + step) for start, step in zip(corner, steps, strict=True))
        target[tile] = source[tile]


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order, itself where it lies so already."""
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy
