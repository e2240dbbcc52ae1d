"""From a name to a local folder: a path, or an id on the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError, nearest_path
from jaxalign.models._refusals import not_a_folder, pickled

CONFIGS = ["*.json", "*.jinja"]
TOKENIZER = [*CONFIGS, "merges.txt", "vocab.txt", "*.model"]
EVERYTHING = [*TOKENIZER, "*.safetensors"]
# The same weights once more (other formats, halves for diffusers) and training leftovers.
ELSEWHERE = ["*/*.safetensors", "*/*.json", "consolidated*", "*.fp16.safetensors"]
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
SECONDS = 10.0  # to wait for the hub's first answer


def local_folder(
    name: str | Path, *, weights: bool = True, tokenizer: bool = False, revision: str | None = None
) -> Path:
    """The local folder of a model, downloaded to the hub's cache first if the name is a hub id.

    Offline (``HF_HUB_OFFLINE``, or no network) the cache is what there is.

    Args:
        name: a local folder or a hub id.
        weights: False leaves the weights on the hub: configs are enough ...
        tokenizer: ... or configs and the tokenizer.
        revision: of a hub id: a branch, a tag or a commit.

    Raises:
        InputError: neither a folder nor a model that can be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{name}: a local folder has no revision {revision!r}")
        return path
    if path.exists():
        raise InputError(not_a_folder(path))
    if isinstance(name, Path) or not HUB_ID.fullmatch(name):
        raise InputError(f"{name}: no such folder{nearest_path(name)}")

    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=EVERYTHING if weights else TOKENIZER if tokenizer else CONFIGS,
                ignore_patterns=ELSEWHERE,
                etag_timeout=SECONDS,
            )
        )
    except Exception as error:  # the client raises its own, httpx' and OS errors; all mean "not to be had"
        raise InputError(_not_to_be_had(str(name), revision, error)) from error
    if not weights or any(folder.glob("*.safetensors")) or (folder / "adapter_config.json").is_file():
        return folder
    try:
        files = huggingface_hub.list_repo_files(name, revision=revision)
    except Exception:
        raise InputError(
            f"{name}: only a part of it is in the hub's cache ({folder}), without weights, and the hub cannot be asked "
            "for the rest"
        ) from None
    if found := [file for file in files if file.endswith((".bin", ".pt", ".pth"))]:
        raise InputError(pickled(f"{name}: {found[0]}", str(name), folder))
    raise InputError(f"{name}: no safetensors file among its {len(files)} files on the hub")


def _not_to_be_had(name: str, revision: str | None, error: Exception) -> str:
    asked = name if revision is None else f"{name} (revision {revision})"
    kind, near = type(error).__name__, nearest_path(name)
    if kind == "GatedRepoError":
        return f"{asked}: its authors ask for consent first: give it on the model's page, then run: hf auth login"
    if kind == "RevisionNotFoundError":
        return f"{asked}: the hub's model has no such revision"
    if kind == "RepositoryNotFoundError":
        return f"{asked}: neither a local folder nor a model on the hub (or a private one: run hf auth login){near}"
    if _offline():
        return f"{asked}: not a local folder, not in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub{near}"
    return f"{asked}: not a local folder, not in the hub's cache, and the hub does not give it ({_reason(error)}){near}"


def _offline() -> bool:
    import huggingface_hub.constants

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true")


def _reason(error: BaseException) -> str:
    """The innermost cause, in a line."""
    seen: Any = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    text = str(seen).strip().splitlines()
    return text[0] if text else type(seen).__name__
