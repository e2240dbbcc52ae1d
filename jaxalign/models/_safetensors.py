"""A folder of safetensors files, single or sharded, read tensor by tensor."""

import json
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F64", "F32", "F16", "BF16"}


class TensorFolder:
    """The tensors of a model folder by name; nothing is read before it is asked for.

    Raises:
        InputError: no safetensors file, an index that names a file that is not there, a file that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, object] = {}
        if (folder / INDEX).is_file():
            try:
                self._files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{folder / INDEX}: not an index of safetensors files ({error})") from None
            for file in sorted(set(self._files.values())):
                if not (folder / file).is_file():
                    raise InputError(f"{folder / file}: missing, though {INDEX} names it")
        elif (folder / SINGLE).is_file():
            self._files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)  # type: ignore[attr-defined]
        else:
            pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
            if pickles:
                raise InputError(
                    f"{folder / pickles[0]}: pickled weights can run code and are not read; load the model once with "
                    "transformers and save it with save_pretrained, which writes safetensors"
                )
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}: this folder holds no model weights")

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One floating tensor.

        Raises:
            InputError: missing, of another shape, or not floating (quantised weights).
        """
        if name not in self._files:
            raise InputError(f"{self.folder}: tensor {name!r} is missing")
        file = self._files[name]
        handle = self._open(file)
        try:
            view = handle.get_slice(name)  # type: ignore[attr-defined]
        except Exception:
            raise InputError(f"{self.folder / file}: tensor {name!r} is missing, though {INDEX} names it") from None
        if tuple(view.get_shape()) != shape:
            raise InputError(
                f"{self.folder / file}: tensor {name!r} has shape {tuple(view.get_shape())}, config.json says {shape}"
            )
        if view.get_dtype() not in FLOATS:
            raise InputError(
                f"{self.folder / file}: tensor {name!r} is {view.get_dtype()}; only float weights are read"
            )
        return handle.get_tensor(name)  # type: ignore[attr-defined]

    def _open(self, file: str) -> object:
        from safetensors import SafetensorError, safe_open

        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.folder / file, framework="np")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{self.folder / file}: damaged safetensors file ({error})") from None
        return self._handles[file]
