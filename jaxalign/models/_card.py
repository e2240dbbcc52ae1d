"""A model's card: README.md with the YAML header that Hugging Face reads, and a body of Markdown."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

CARD = "README.md"
# A card without this line is somebody's own.
MARK = "<!-- Written by jaxalign; remove this line to keep what you change below. -->"
WRITTEN_BY_A_RUN = ("final", "adapter")

Value = str | Sequence[str]


def card_text(header: Mapping[str, Value | None], body: str) -> str:
    """The card's text.

    Args:
        header: names of Hugging Face's model card metadata; None and empty values are left out.
        body: Markdown.
    """
    lines = ["---"]
    for name, value in header.items():
        if isinstance(value, str):
            lines.append(f"{name}: {_quoted(value)}")
        elif value:
            lines += [f"{name}:", *(f"- {_quoted(one)}" for one in value)]
    return "\n".join([*lines, "---", "", MARK, "", body.strip()]) + "\n"


def write_card(folder: str | Path, text: str) -> bool:
    """Write the card into a model's folder, unless the folder has one that jaxalign did not write.

    Returns:
        Whether it was written; on other processes than the first always True.
    """
    if jax.process_index() != 0:
        return True
    path = Path(folder) / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return True


def public_name(name: str | Path) -> str:
    """A model's or data set's name as a card may say it: a local path by its last part, everything else as it is.

    Every run writes ``final`` and ``adapter``: these have their run's folder in front.
    """
    text = str(name)
    path = Path(text).expanduser()
    local = isinstance(name, Path) or path.is_absolute() or text.startswith((".", "~")) or _exists(path)
    if not local:
        return text
    given = Path(text)  # "~" would become somebody's name
    run = given.parent.name
    if given.name in WRITTEN_BY_A_RUN and run not in ("", "..", "~"):
        return f"{run}/{given.name}"
    return given.name or str(given)


def code(text: str) -> str:
    """A name of any characters as a piece of code in Markdown, in a table too."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return "`" + plain.replace("`", "'").replace("|", "\\|") + "`"


def base_of(name: str | Path) -> str | None:
    """The hub's model that a model comes from: itself, or what the card of its folder says. None where none is said.

    A card without an owner before its base's name means the hub's only where jaxalign wrote it.
    """
    path = Path(name).expanduser()
    if not _exists(path):
        return str(name) if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(name)) else None
    try:
        text = (path / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = text.split("\n---", 1)[0]
    found = re.search(r'^base_model:[ \n-]*"?([\w-][\w.-]*(?:/[\w.-]+)?)"?$', head, re.MULTILINE)
    if found is None or not head.startswith("---"):
        return None
    return found[1] if "/" in found[1] or MARK in text else None


def has_chat_template(folder: str | Path) -> bool:
    """Whether the tokenizer of a model's folder brings a chat template."""
    folder = Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _quoted(text: str) -> str:
    """A YAML string in double quotes, whatever is in it."""
    parts = []
    for character in text.encode("utf-8", "replace").decode("utf-8"):
        if character in '"\\':
            parts.append("\\" + character)
        elif character.isprintable():
            parts.append(character)
        else:
            parts.append(f"\\U{ord(character):08x}")
    return '"' + "".join(parts) + '"'
