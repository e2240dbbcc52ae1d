"""Records that hold what several systems, by name, answered to one prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxalign.data import _records
from jaxalign.data._records import Content, Record
from jaxalign.errors import InputError

__all__ = ["named_outputs"]


def named_outputs(record: Record, place: str = "record") -> tuple[Content, dict[str, Content]]:
    """The prompt, and at least two outputs by their systems' names.

    - ``prompt`` + ``outputs``, an object of system -> answer; in CSV, a cell that holds it as JSON. A null output is
      a system that has none here.
    - ``prompt`` + ``chosen`` + ``rejected``, also with the prompt inside both; the systems are "chosen" and "rejected".

    Prompts are text or messages; to a text, answers are texts.

    Raises:
        InputError: naming place and field.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: expected an object, got {type(record).__name__}")
    if record.get("outputs") is None and record.get("chosen") is not None:
        prompt, chosen, rejected = _records.preference(record, place)
        outputs = {"chosen": chosen, "rejected": rejected}
    else:
        outputs = {}
        for name, value in _object(_records.get(record, "outputs", place), place).items():
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"{place}: field 'outputs': a system without a name")
            if value is not None:
                outputs[name] = _records.answer(value, f"outputs.{name}", place)
        if len(outputs) < 2:
            raise InputError(f"{place}: field 'outputs': needs at least 2 systems, has {', '.join(outputs) or 'none'}")
        prompt = _records.content(_records.get(record, "prompt", place), "prompt", place)
    if isinstance(prompt, str):
        for name, output in outputs.items():
            if not isinstance(output, str):
                field = name if record.get("outputs") is None else f"outputs.{name}"
                raise InputError(f"{place}: field {field!r} is a list of messages, but 'prompt' is a string")
    return prompt, outputs


def _object(value: Any, place: str) -> Mapping[Any, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{place}: field 'outputs': expected an object of system -> answer, got text") from None
    if not isinstance(value, Mapping):
        raise InputError(
            f"{place}: field 'outputs': expected an object of system -> answer, got {type(value).__name__}"
        )
    return value
