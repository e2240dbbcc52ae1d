"""Algorithm 1's first half: sample a model, have its outputs rated, freeze the file."""

import hashlib
import json
from pathlib import Path
from typing import Literal, Protocol

import jax

from jaxalign.errors import InputError
from jaxalign.recipes import collect
from jaxalign.recipes._journal import write_whole
from jaxalign.recipes._run import say
from jaxalign.recipes._sheet import PeopleAsk

__all__ = ["HindsightCollect", "frozen_feedback"]


class HindsightCollect(Protocol):
    """What of a config decides what is sampled and rated."""

    @property
    def model(self) -> str: ...
    @property
    def prompts(self) -> str | None: ...
    @property
    def rater(self) -> str | None: ...
    @property
    def judge(self) -> str | None: ...
    @property
    def people(self) -> PeopleAsk | None: ...
    @property
    def samples_per_prompt(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "bfloat16"]: ...
    @property
    def on_bad_row(self) -> Literal["error", "skip"]: ...


def frozen_feedback(config: HindsightCollect, path: Path) -> bool:
    """Make sure that ``path`` holds what was sampled and rated; False while people have not answered yet.

    The file is sealed when it is complete (``feedback.sealed.json`` beside it, with its SHA-256 and the settings it
    follows from): from then on nothing is sampled, and training reads these records and no others.

    Raises:
      InputError: the file is not what was sealed, or was made by other settings.
    """
    seal = path.with_suffix(".sealed.json")
    settings = {
        "model": config.model, "prompts": config.prompts, "rater": config.rater, "judge": config.judge,
        "people": config.people, "samples_per_prompt": config.samples_per_prompt,
        "max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "seed": config.seed,
        "dtype": config.dtype,
    }  # fmt: skip
    if seal.exists():
        held = json.loads(seal.read_text(encoding="utf-8"))
        for name, value in (settings | _files(config)).items():
            if held["settings"].get(name) != value:
                flag = "--" + name.split(",")[0].replace("_", "-")
                raise InputError(f"{flag}: {path} was made with {held['settings'].get(name)!r}, not {value!r}")
        if not path.is_file() or _name(path) != held["sha256"]:
            raise InputError(f"{path}: it is not the file that was sampled and rated; take another --output-dir")
        return True
    if jax.process_count() > 1:
        raise InputError("--prompts: one process samples and rates; run this once on one, then train on several")
    found = collect.run(
        collect.CollectConfig(
            model=config.model,
            dataset=str(config.prompts),
            output=path,
            rater=config.rater,
            judge=config.judge,
            people=config.people,
            samples_per_prompt=config.samples_per_prompt,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.seed,
            dtype=config.dtype,
            on_bad_row=config.on_bad_row,
        )
    )
    if found.waiting:
        return False
    content = {"sha256": _name(path), "settings": settings | _files(config), "summary": found.summary()}
    write_whole(seal, (json.dumps(content, indent=2) + "\n").encode())
    say(f"{path}: frozen; training reads these records and no others")
    return True


def _files(config: HindsightCollect) -> dict[str, str]:
    """What the files are that the feedback follows from, where they are files."""
    found = {}
    for flag in ("prompts", "rater", "judge"):
        path = Path(str(getattr(config, flag)).partition(":")[0]).expanduser()
        if path.is_file():
            found[f"{flag}, the file"] = _name(path)
    return found


def _name(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
