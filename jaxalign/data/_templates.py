"""Feedback in words: templates as data, read from small TOML files and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jaxalign.errors import InputError, did_you_mean, nearest, nearest_path

FeedbackKind = Literal["answer", "summary", "dialogue"]
Polarity = Literal["positive", "negative"]

__all__ = [
    "BUILT_IN_TEMPLATES",
    "FeedbackKind",
    "GradedTemplate",
    "Marker",
    "PairTemplate",
    "Polarity",
    "TemplateSet",
    "load_templates",
]

KINDS: tuple[str, ...] = get_args(FeedbackKind)
BUILT_IN_TEMPLATES = ("paper", "released", "talk")
"""Names that ``load_templates`` knows: the structure of the CoH paper's list, the markers of its released code, and
three short ones."""

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_GRADE = re.compile(r"\{([Gg])rade\}")
# What says good and what says bad: a marker that says the opposite of what it marks is most likely a slip.
_GOOD = frozenset({
    "good", "better", "best", "great", "excellent", "helpful", "respectful", "unbiased", "correct", "useful",
})  # fmt: skip
_BAD = frozenset({
    "bad", "worse", "worst", "poor", "terrible", "awful", "unhelpful", "disrespectful", "biased", "wrong", "useless",
})  # fmt: skip


class Marker(NamedTuple):
    """The words before an output."""

    text: str
    """Without white space at its end."""
    space: str = " "
    """The white space between them and the output; it is tokenised with the output, as models learn words."""
    joined: bool = False
    """Whether they go on from the output before, such as ", a worse summary:"."""


def marker_of(words: str, *, joined: bool = False) -> Marker:
    """A marker of words as a template has them: the white space at their end stands before the output."""
    text = words.rstrip()
    return Marker(text, words[len(text) :] or " ", joined)


@dataclasses.dataclass(frozen=True)
class PairTemplate:
    """Words around two outputs, in the order in which they stand."""

    name: str
    text: str
    """With {positive} and {negative}, such as "A good summary: {positive}, a worse summary: {negative}"."""
    kinds: tuple[str, ...] = KINDS
    """The kinds of records it suits."""
    auxiliary: bool = False
    """Whether it is a paraphrase, drawn by the structure "aux" alone."""

    @property
    def order(self) -> tuple[Polarity, Polarity]:
        """Which output stands first."""
        first = self.text.index("{positive}") < self.text.index("{negative}")
        return ("positive", "negative") if first else ("negative", "positive")

    @property
    def markers(self) -> tuple[Marker, Marker]:
        """The words before the first and before the second output."""
        opening, _, following, _, _ = _PLACEHOLDER.split(self.text)
        return marker_of(opening), marker_of(following, joined=True)


@dataclasses.dataclass(frozen=True)
class GradedTemplate:
    """Words around any number of outputs, graded from worst to best."""

    name: str
    first: str
    """Before the first output, with {grade} or, at the beginning of a sentence, {Grade}."""
    following: str
    """Before every further one."""
    grades: tuple[str, ...]
    """From worst to best, such as "a terrible", "a bad", "a good", "an excellent"."""
    kinds: tuple[str, ...] = KINDS
    """The kinds of records it suits."""

    def marker(self, place: int, rank: int, ranks: int) -> Marker:
        """The words before the output at ``place`` (0 = first), of rank 0 (worst) .. ``ranks`` - 1 (best).

        Two ranks are the outermost grades, more are spread evenly between. Raises ``ValueError`` for more than there
        are grades.
        """
        if ranks > len(self.grades):
            raise ValueError(f"template {self.name!r} has {len(self.grades)} grades, not {ranks}")
        grade = self.grades[round(rank * (len(self.grades) - 1) / max(ranks - 1, 1))]
        words = self.following if place else self.first
        capital = grade[:1].upper() + grade[1:]
        text = _GRADE.sub(lambda found: grade if found[1] == "g" else capital, words)
        return marker_of(text, joined=place > 0)


@dataclasses.dataclass(frozen=True)
class TemplateSet:
    """The templates of a file, and the words of what is not feedback."""

    name: str
    pairs: tuple[PairTemplate, ...]
    graded: tuple[GradedTemplate, ...] = ()
    user: str = "User:"
    """Before a person's turn in a dialogue."""
    assistant: str = "Assistant:"
    """Before an assistant's turn that is not marked."""
    between: str = "\n\n"
    """Between turns, and between a prompt and the first marker (unless the prompt ends with white space)."""
    neutral: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Words that say what comes and nothing of its quality, by kind of record: for baselines without feedback."""

    def of_kind(self, kind: str) -> list[PairTemplate]:
        """The pair templates that suit a kind of record, without the auxiliary ones."""
        return [template for template in self.pairs if kind in template.kinds and not template.auxiliary]

    def find(self, name: str) -> PairTemplate:
        """The pair template of this name. Raises ``InputError`` naming those there are."""
        for template in self.pairs:
            if template.name == name:
                return template
        raise InputError(
            f"templates {self.name}: no template {name!r}; there are {', '.join(t.name for t in self.pairs)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """What ``parse_templates`` reads, as JSON-able values."""
        words: dict[str, Any] = {"user": self.user, "assistant": self.assistant, "between": self.between}
        # Their words were checked, or let through, when they were read first.
        pairs = [{**dataclasses.asdict(pair), "kinds": list(pair.kinds), "check_words": False} for pair in self.pairs]
        graded = [
            {**dataclasses.asdict(one), "kinds": list(one.kinds), "grades": list(one.grades)} for one in self.graded
        ]
        return words | {"neutral": dict(self.neutral), "pair": pairs, "graded": graded}

    def fingerprint(self) -> str:
        """The name of the set by its content."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def load_templates(name_or_file: str | Path) -> TemplateSet:
    """A set of templates by name (``BUILT_IN_TEMPLATES``) or of a TOML file.

        user = "User:"                                   # words of dialogues; all three may be left out
        assistant = "Assistant:"
        between = "\\n\\n"

        [neutral]                                        # for baselines without feedback, by kind of record
        summary = "A summary:"

        [[pair]]
        name = "good-worse"
        text = "A good summary: {positive}, a worse summary: {negative}"
        kinds = ["summary"]                              # left out: all of answer, summary, dialogue
        auxiliary = false                                # true: a paraphrase, for the structure "aux"
        check_words = true                               # false: a marker may say the opposite of what it marks

        [[graded]]                                       # for chains of more than two
        name = "graded-summary"
        first = "{Grade} summary:"
        following = ", {grade} summary:"
        grades = ["a terrible", "a bad", "a good", "an excellent"]

    Raises:
        InputError: naming the file, the template and the field: a file that is none, a field that is unknown or of
            another type, a name twice, a placeholder missing, twice or unknown, an empty marker, text after the last
            output (nothing would read it), a marker before {positive} that only says bad things (or the reverse).
    """
    name = str(name_or_file)
    if name in BUILT_IN_TEMPLATES:
        text = (resources.files("jaxalign.data") / "templates" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(BUILT_IN_TEMPLATES)
            hint = f"; did you mean {near!r}?" if (near := nearest(name, BUILT_IN_TEMPLATES)) else nearest_path(path)
            raise InputError(f"templates: {name}: no such file, and none of the built-in names ({known}){hint}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{name}: not UTF-8 text") from None
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not a TOML file: {error}") from None
    return parse_templates(fields, name)


def parse_templates(fields: Mapping[str, Any], source: str) -> TemplateSet:
    """A set of what a file says; ``source`` is what errors call it. Raises ``InputError`` as ``load_templates``."""
    _known(fields, ("user", "assistant", "between", "neutral", "pair", "graded"), source)
    words = {name: _text(fields, name, source) for name in ("user", "assistant", "between") if name in fields}
    neutral = fields.get("neutral", {})
    if not isinstance(neutral, Mapping):
        raise InputError(f"{source}: field 'neutral': expected a table, got {type(neutral).__name__}")
    _known(neutral, KINDS, f"{source}: field 'neutral'")
    neutral = {kind: _text(neutral, kind, f"{source}: field 'neutral'") for kind in neutral}
    pairs = tuple(_pair(entry, place) for entry, place in _tables(fields, "pair", source))
    graded = tuple(_graded(entry, place) for entry, place in _tables(fields, "graded", source))
    if not pairs and not graded:
        raise InputError(f"{source}: it has no template ([[pair]] or [[graded]])")
    names: set[str] = set()
    for name in [*(pair.name for pair in pairs), *(one.name for one in graded)]:
        if name in names:
            raise InputError(f"{source}: two templates are called {name!r}")
        names.add(name)
    return TemplateSet(name=source, pairs=pairs, graded=graded, neutral=neutral, **words)


def _pair(entry: Mapping[str, Any], place: str) -> PairTemplate:
    _known(entry, ("name", "text", "kinds", "auxiliary", "check_words"), place)
    text = _text(entry, "text", place)
    found = _PLACEHOLDER.findall(text)
    if sorted(found) != ["negative", "positive"]:
        held = ", ".join(f"{{{name}}}" for name in found) or "neither"
        raise InputError(f"{place}: field 'text': needs {{positive}} and {{negative}} once each, has {held}")
    opening, first, following, second, rest = _PLACEHOLDER.split(text)
    if rest.strip():
        raise InputError(f"{place}: field 'text': {rest.strip()!r} after the last output would be read by nothing")
    for marker, polarity in ((opening, first), (following, second)):
        if not marker.strip():
            raise InputError(f"{place}: field 'text': there are no words before {{{polarity}}}")
        if _flag(entry, "check_words", place, True):
            _check_words(marker, polarity, f"{place}: field 'text'")
    return PairTemplate(
        name=_text(entry, "name", place),
        text=text,
        kinds=_kinds(entry, place),
        auxiliary=_flag(entry, "auxiliary", place, False),
    )


def _says_opposite(words: str, polarity: str) -> set[str]:
    """What of the words says the opposite of a polarity, where nothing says the polarity itself."""
    said = set(re.findall(r"\w+", words.lower()))
    own, opposite = (_GOOD, _BAD) if polarity == "positive" else (_BAD, _GOOD)
    return set() if said & own else said & opposite


def _check_words(marker: str, polarity: str, place: str) -> None:
    if opposite := _says_opposite(marker, polarity):
        raise InputError(
            f"{place}: {marker.strip()!r} stands before {{{polarity}}}, but says {sorted(opposite)[0]!r}; are the two "
            "swapped? (check_words = false allows it)"
        )


def _graded(entry: Mapping[str, Any], place: str) -> GradedTemplate:
    _known(entry, ("name", "first", "following", "grades", "kinds"), place)
    words = {}
    for field in ("first", "following"):
        words[field] = _text(entry, field, place)
        if _PLACEHOLDER.findall(words[field]) not in (["grade"], ["Grade"]):
            raise InputError(f"{place}: field {field!r}: needs {{grade}} or {{Grade}} once, and no other placeholder")
    grades = entry.get("grades")
    if not isinstance(grades, Sequence) or isinstance(grades, str) or len(grades) < 2:
        raise InputError(f"{place}: field 'grades': expected a list of at least two, from worst to best")
    if not all(isinstance(grade, str) and grade.strip() for grade in grades) or len(set(grades)) < len(grades):
        raise InputError(f"{place}: field 'grades': expected different words, none of them empty")
    for grade, polarity in ((grades[0], "negative"), (grades[-1], "positive")):
        if _says_opposite(grade, polarity):
            raise InputError(f"{place}: field 'grades': from worst to best; {grade!r} stands at the wrong end")
    return GradedTemplate(name=_text(entry, "name", place), grades=tuple(grades), kinds=_kinds(entry, place), **words)


def _tables(fields: Mapping[str, Any], name: str, source: str) -> list[tuple[Mapping[str, Any], str]]:
    entries = fields.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"{source}: field {name!r}: expected tables, each headed [[{name}]]")
    return [
        (entry, f"{source}: {name} {number}" + (f" ({entry['name']})" if isinstance(entry.get("name"), str) else ""))
        for number, entry in enumerate(entries, start=1)
    ]


def _known(fields: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for name in fields:
        if name not in known:
            raise InputError(f"{place}: unknown field {name!r}; {did_you_mean(name, known)}")


def _text(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or (not value.strip() and name != "between"):
        found = "missing" if value is None else "empty" if value == "" else repr(value)[:40]
        raise InputError(f"{place}: field {name!r}: expected words, is {found}")
    return value


def _flag(fields: Mapping[str, Any], name: str, place: str, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{place}: field {name!r}: expected true or false, got {value!r:.40}")
    return value


def _kinds(entry: Mapping[str, Any], place: str) -> tuple[str, ...]:
    kinds = entry.get("kinds", list(KINDS))
    if (
        not isinstance(kinds, Sequence)
        or isinstance(kinds, str)
        or not kinds
        or any(kind not in KINDS for kind in kinds)
    ):
        raise InputError(f"{place}: field 'kinds': expected a list of {', '.join(KINDS)}, got {kinds!r:.60}")
    return tuple(kinds)
