"""Data sets and raters as what is given away may name them: by what was asked for, without this machine's folders."""

from pathlib import Path

from jaxalign import data, models

__all__ = ["public_dataset", "public_rater"]


def public_dataset(source: str) -> str:
    """ "NAME:CONFIG" of "NAME[:CONFIG][@SPLIT]"; a local path by its last part."""
    name, config, _ = data.parse_source(source)
    return models.public_name(name) + ("" if config is None else f":{config}")


def public_rater(spec: str) -> str:
    """ "FILE.py:NAME" and "FOLDER#LABEL" with the path's last part; "module:function" and hub ids as they are."""
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).name}:{name}"
    folder, sign, label = spec.partition("#")
    return models.public_name(folder) + sign + label
