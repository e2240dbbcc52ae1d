"""The safetensors format: a folder of files mapped into memory and read by region, and files written as a stream.

A file is eight bytes with the header's length, a JSON header ``{name: {dtype, shape, data_offsets}}``, and the tensors
one after the other. Reading by region is why the format is read here: the ``safetensors`` package gives copies, of
whole tensors or of contiguous slices.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._copy import contiguous
from jaxalign.models._refusals import no_weights

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, as the safetensors package has it

FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in FLOATS.items()}
OTHER_SIZES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


class TensorFolder:
    """The tensors of a model folder by name. The files' headers are read and checked; tensors when they are asked for.

    Raises:
        InputError: no safetensors file (the message says what to do with what is there instead), an index that names a
            file or a tensor that is not there, a tensor in two files, a file that is damaged or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        self._bytes: dict[str, np.ndarray] = {}
        self._tensors: dict[str, Tensor] = {}
        index: dict[str, str] | None = None
        if (folder / SINGLE).is_file():  # first, as transformers has it
            files = [SINGLE]
        elif (folder / INDEX).is_file():
            index = _read_index(folder / INDEX)
            files = sorted(set(index.values()))
            for file in files:
                if not (folder / file).is_file():
                    raise InputError(f"{folder / file}: missing, though {INDEX} names it")
        else:
            raise InputError(no_weights(folder))
        for file in files:
            for name, tensor in self._open(file).items():
                if name in self._tensors:
                    raise InputError(f"{folder / file}: tensor {name!r} is in {self._tensors[name].file} too")
                self._tensors[name] = tensor
        self.unlisted: set[str] = set() if index is None else set(self._tensors) - set(index)
        """Tensors of the files that the index does not name."""
        for name, file in (index or {}).items():
            if name not in self._tensors or self._tensors[name].file != file:
                raise InputError(f"{folder / file}: tensor {name!r} is missing, though {INDEX} names it")

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._tensors)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a floating tensor that is there."""
        return FLOATS[self._tensors[name].dtype]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise InputError for a tensor that is missing, of another shape, or not floating (quantised weights)."""
        if name not in self._tensors:
            raise InputError(f"{self.folder}: tensor {name!r} is missing")
        tensor = self._tensors[name]
        path = self.folder / tensor.file
        if tensor.shape != shape:
            raise InputError(f"{path}: tensor {name!r} has shape {tensor.shape}, config.json says {shape}")
        if tensor.dtype not in FLOATS:
            raise InputError(
                f"{path}: tensor {name!r} is {tensor.dtype}; only float weights are read, quantised ones have to be "
                "dequantised first"
            )

    def view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A floating tensor in the mapped file, read-only: only what is touched is read. Raises as ``check`` does."""
        self.check(name, shape)
        tensor = self._tensors[name]
        raw = self._bytes[tensor.file][tensor.start : tensor.start + tensor.size]
        return raw.view(FLOATS[tensor.dtype]).reshape(shape)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A copy of a floating tensor. Raises as ``check`` does."""
        return self.view(name, shape).copy()

    def release(self, name: str, part: np.ndarray | None = None) -> None:
        """Give the pages of a tensor, or of a view of a part of it, back: they count as this process's memory else."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        tensor = self._tensors[name]
        start, end = tensor.start, tensor.start + tensor.size
        if part is not None:
            base = self._bytes[tensor.file].ctypes.data
            low, high = (address - base for address in np.lib.array_utils.byte_bounds(part))
            if start <= low <= high <= end:
                start, end = low, high
        start -= start % mmap.PAGESIZE
        if end > start:
            self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, start, end - start)

    def _open(self, file: str) -> dict[str, Tensor]:
        path = self.folder / file
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                tensors = _read_header(path, file, stream, size)
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        self._bytes[file] = np.frombuffer(self._maps[file], np.uint8)
        return tensors


class TensorWriter:
    """A safetensors file written tensor by tensor, in the order announced.

    Args:
        stream: where to.
        tensors: (name, dtype, shape) of all that will follow; larger dtypes first, so that all are aligned.
    """

    def __init__(self, stream: BinaryIO, tensors: Sequence[tuple[str, np.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, dtype, shape in tensors:
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        stream.write(struct.pack("<Q", len(text)) + text)
        self._stream = stream

    def write(self, array: np.ndarray) -> None:
        """The next tensor."""
        self._stream.write(contiguous(array).reshape(-1).view(np.uint8).data)


def split_shards(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of tensors file by file, as transformers divides them: in order, a file closed before it would pass the
    limit, a tensor larger than the limit in a file of its own."""
    shards: list[list[int]] = []
    current: list[int] = []
    filled = 0
    for index, size in enumerate(sizes):
        if size > limit:
            shards.append([index])
            continue
        if current and filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(index)
        filled += size
    return [*shards, current] if current else shards


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text())["weight_map"]
        files = {name: str(file) for name, file in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an index of safetensors files ({error})") from None
    for file in files.values():
        if Path(file).name != file:
            raise InputError(f"{path}: names {file!r}, which is not a file of this folder")
    return files


def _read_header(path: Path, file: str, stream: BinaryIO, size: int) -> dict[str, Tensor]:
    """The header, checked: tensors follow one another without a gap and fill the file."""

    def damaged(reason: str) -> InputError:
        return InputError(f"{path}: damaged safetensors file ({reason})")

    if size < 8:
        raise damaged(f"{size} bytes")
    begins = stream.read(8)
    if begins == b"version ":
        raise InputError(f"{path}: a pointer of Git LFS, not the file itself; run: git lfs pull")
    (length,) = struct.unpack("<Q", begins)
    if length > min(size - 8, LONGEST_HEADER):
        raise damaged(f"its header would have {length} bytes, the file has {size}")
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_unique)
        tensors = {}
        for name, fields in header.items():
            if name != "__metadata__":
                start, end = fields["data_offsets"]
                tensors[name] = Tensor(file, fields["dtype"], tuple(fields["shape"]), 8 + length + start, end - start)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"its header: {error}") from None
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        width = FLOATS[tensor.dtype].itemsize if tensor.dtype in FLOATS else OTHER_SIZES.get(tensor.dtype)
        if tensor.start != end or (width is not None and tensor.size != math.prod(tensor.shape) * width):
            raise damaged(f"tensor {name!r} does not lie where its header says")
        end += tensor.size
    if end > size:
        raise damaged(f"cut short: {size} bytes of {end}")
    if end < size:
        raise damaged(f"{size - end} bytes too many")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"tensor {twice!r} stands there twice")
    return fields
