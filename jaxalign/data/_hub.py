"""Data sets by their names on a hub: "ID:CONFIG@SPLIT", subfolders that stand for configurations, published scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

__all__ = ["SUBFOLDERS", "parse_source", "read_hub"]

SUBFOLDERS = frozenset({"Anthropic/hh-rlhf"})
"""Hub ids whose parts are folders (``data_dir``), not configurations."""

_SPLIT = re.compile(r"(.+)@([\w.-]+)")
_CONFIG = re.compile(r"([\w.-]+(?:/[\w.-]+)?):([^:/\\]+)")


def parse_source(source: str) -> tuple[str, str | None, str | None]:
    """(file, folder or hub id; configuration or None; split or None) of "NAME[:CONFIG][@SPLIT]".

    What exists under the name as it stands is meant by it, whatever it holds of ":" and "@".
    """
    split = config = None
    if not Path(source).exists() and (own := _SPLIT.fullmatch(source)):
        source, split = own.groups()
    if not Path(source).exists() and (own := _CONFIG.fullmatch(source)):
        source, config = own.groups()
    return source, config, split


def read_hub(name: str, split: str, config: str | None) -> Any:
    """The split of a hub's data set, or with its columns as the hub keeps them where it is published as a script.

    Raises:
      InputError: no such data set, configuration or split, or no hub.
    """
    import datasets

    try:
        if config is not None and name in SUBFOLDERS:
            return datasets.load_dataset(name, data_dir=config, split=split)
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: no such file or folder, and no such data set on the hub: {_line(error)}") from None
    except RuntimeError as error:
        # Two of the published data sets of feedback are scripts, which datasets runs no more (since 4.0).
        if "scripts are no longer supported" not in str(error):
            raise
    files = f"hf://datasets/{name}@refs%2Fconvert%2Fparquet/{config or 'default'}/{split}/*.parquet"
    try:
        return datasets.load_dataset("parquet", data_files={split: files}, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{name}: a script on the hub, and no Parquet export of configuration {config or 'default'!r}, "
            f"split {split!r}: {_line(error)}"
        ) from None


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
