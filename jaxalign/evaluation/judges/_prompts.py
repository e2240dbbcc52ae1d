"""What a judge is asked: prompts as data files, filled in without reading what is filled in."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError, did_you_mean, nearest, nearest_path
from jaxalign.evaluation._comparison import Comparison
from jaxalign.evaluation.judges._answer import LABEL, choices

__all__ = ["BUILT_IN_PROMPTS", "AnswerForm", "JudgePrompts", "load_prompts"]

BUILT_IN_PROMPTS = ("summaries", "summaries-concise", "dialogue")

AnswerForm = Literal["explained", "direct"]
"""One sentence of comparison before the verdict, or the verdict alone."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_IN_TEXT = ("question", "prompt", "first", "second", "answer")


@dataclass(frozen=True, kw_only=True)
class JudgePrompts:
    """A text with places for what is compared, and a question for every axis."""

    name: str
    """The file, or the name of the built-in one."""
    text: str
    """The whole prompt; ``{question}``, ``{prompt}``, ``{first}``, ``{second}`` and ``{answer}`` stand in it once."""
    questions: Mapping[str, str]
    """What is asked, by axis."""
    explained: str
    """How to answer with a sentence of comparison; ``{choices}`` stands for the verdicts that are allowed."""
    direct: str
    """How to answer with the verdict alone."""
    system: str = field(default="")
    """The system message, if there is one."""

    def render(self, comparison: Comparison, *, ties: bool, form: AnswerForm = "explained") -> str:
        """The prompt for one comparison. Placeholders inside the outputs stay what they are: text.

        Raises:
          InputError: the file has no question for the comparison's axis.
        """
        if comparison.axis not in self.questions:
            known = ", ".join(self.questions)
            raise InputError(f"prompts {self.name}: no question for the axis {comparison.axis!r}; there are {known}")
        answer = self.explained if form == "explained" else self.direct
        values = {
            "question": self.questions[comparison.axis],
            "prompt": comparison.prompt,
            "first": comparison.first,
            "second": comparison.second,
            "answer": answer.replace("{choices}", choices(ties)),
        }
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text)  # one pass: what is put in is not read

    def fingerprint(self) -> str:
        """The prompts' name by their content: part of a verdict's key."""
        content = [self.system, self.text, dict(self.questions), self.explained, self.direct]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_prompts(name_or_file: str | Path) -> JudgePrompts:
    """Prompts by name (``BUILT_IN_PROMPTS``) or of a TOML file.

        system = "You compare answers."                  # may be left out
        text = '''{question}

        Question: {prompt}
        Answer A: {first}
        Answer B: {second}

        {answer}'''
        explained = '''Compare the two in one sentence, then write
        Preferred: <{choices}>'''
        direct = '''Write only
        Preferred: <{choices}>'''

        [questions]                                      # one for every axis that is asked about
        overall = "Which of the answers is better?"

    Raises:
      InputError: naming the file and the field: a file that is none, a field that is unknown, missing or empty, a
        placeholder missing, twice or unknown, an answer's form without the word that verdicts are found by.
    """
    name = str(name_or_file)
    if name in BUILT_IN_PROMPTS:
        folder = resources.files("jaxalign.evaluation.judges") / "prompts"
        text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(BUILT_IN_PROMPTS)
            hint = f"; did you mean {near!r}?" if (near := nearest(name, BUILT_IN_PROMPTS)) else nearest_path(path)
            raise InputError(f"prompts: {name}: no such file, and none of the built-in names ({known}){hint}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{name}: not UTF-8 text") from None
    try:
        return _parse(tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not a TOML file: {error}") from None


def _parse(fields: Mapping[str, Any], source: str) -> JudgePrompts:
    known = ("text", "explained", "direct", "questions", "system")
    for name in fields:
        if name not in known:
            raise InputError(f"{source}: unknown field {name!r}; {did_you_mean(name, known)}")
    words = {name: _words(fields, name, source) for name in known if name in fields and name != "questions"}
    for name, wanted in (("text", _IN_TEXT), ("explained", ("choices",)), ("direct", ("choices",))):
        if name not in words:
            raise InputError(f"{source}: field {name!r}: missing")
        found = _PLACEHOLDER.findall(words[name])
        for placeholder in found:
            if placeholder not in wanted:
                known_ones = ", ".join(f"{{{one}}}" for one in wanted)
                raise InputError(f"{source}: field {name!r}: unknown {{{placeholder}}}; there are {known_ones}")
        for placeholder in wanted:
            count = found.count(placeholder)
            if count == 0 or (name == "text" and count > 1):
                raise InputError(f"{source}: field {name!r}: needs {{{placeholder}}} once, has it {count} times")
        if name != "text" and LABEL not in words[name]:
            raise InputError(f"{source}: field {name!r}: must ask for {LABEL!r}, by which the verdict is found")
    questions = fields.get("questions")
    if not isinstance(questions, Mapping) or not questions:
        raise InputError(f"{source}: field 'questions': expected a table with a question for every axis")
    place = f"{source}: questions"
    return JudgePrompts(name=source, questions={axis: _words(questions, axis, place) for axis in questions}, **words)


def _words(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: field {name!r}: expected words, is {value!r:.40}")
    return value.strip()
