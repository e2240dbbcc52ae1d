"""Which words serve what: the one place where a structure, a kind of record and a polarity choose among templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._templates import GradedTemplate, Marker, PairTemplate, Polarity, TemplateSet, marker_of
from jaxalign.errors import InputError, did_you_mean

__all__ = ["TemplateChoice"]


@dataclasses.dataclass(frozen=True)
class TemplateChoice:
    """The templates of a set that a format draws."""

    templates: TemplateSet
    form: ChainFormat

    def pairs(self, kind: str, structure: str) -> list[PairTemplate]:
        """The pair templates that serve a structure; "p" and "n" take the first words of one that begins so."""
        if structure == "aux":
            return [t for t in self.templates.pairs if t.auxiliary and kind in t.kinds and self._named(t.name)]
        first = "positive" if structure in ("p", "pn") else "negative"
        return [t for t in self.templates.of_kind(kind) if t.order[0] == first and self._named(t.name)]

    def graded(self, kind: str) -> list[GradedTemplate]:
        """The templates of chains."""
        return [t for t in self.templates.graded if kind in t.kinds and self._named(t.name)]

    def markers(self, kind: str, structure: str) -> list[Marker]:
        """Every marker that can be drawn for a structure; "" = what stands before outputs that nobody rated."""
        if self.form.markers != "feedback" or not structure:
            return [self.neutral(kind)]
        if structure == "chain":
            return [
                template.marker(place, rank, len(template.grades))
                for template in self.graded(kind)
                for place in (0, 1)
                for rank in range(len(template.grades))
            ]
        each = 1 if structure in ("p", "n") else 2
        return [marker for template in self.pairs(kind, structure) for marker in template.markers[:each]]

    def neutral(self, kind: str) -> Marker:
        """The words that say what comes, and nothing of its quality. Raises ``InputError`` where there are none."""
        if kind == "dialogue":
            # A chat template's opening of the turn says it, where nothing stands before the first output and no other
            # follows; beside feedback one may.
            if self.form.dialogue == "chat_template" and self.form.markers != "feedback":
                return Marker("")
            return marker_of(self.templates.neutral.get(kind, self.templates.assistant))
        if self.form.markers == "none":
            return Marker("")
        if kind not in self.templates.neutral:
            name = self.templates.name
            raise InputError(f"{name}: field 'neutral': no word for {kind!r}; --markers neutral needs one")
        return marker_of(self.templates.neutral[kind])

    def opening(self, kind: str, polarity: Polarity, name: str | None = None) -> Marker:
        """The first words of a sequence that asks for a good, or a bad, output.

        Words that training drew come before others of the set; ``name`` chooses a template, of pairs or graded.
        Raises ``InputError`` where there is none.
        """
        if self.form.markers != "feedback":
            return self.neutral(kind)
        for template in self._candidates(kind, name):
            if isinstance(template, GradedTemplate):
                return template.marker(0, 0 if polarity == "negative" else 1, 2)
            if template.order[0] == polarity:
                return template.markers[0]
        if name is not None:
            raise InputError(f"template {name!r} does not begin with the {polarity} output")
        raise InputError(f"templates {self.templates.name}: none for {kind!r} begins with the {polarity} output")

    def better(self, kind: str, name: str | None = None) -> tuple[Marker, Marker]:
        """(words of a worse output, words that ask for a better one after it); arguments as in ``opening``."""
        for template in self._candidates(kind, name, several=True):
            if isinstance(template, GradedTemplate):
                return template.marker(0, 0, 2), template.marker(1, 1, 2)
            if template.order[0] == "negative":
                return template.markers
        if name is not None:
            raise InputError(f"template {name!r} begins with the positive output, not the negative one")
        raise InputError(f"templates {self.templates.name}: none for {kind!r} begins with the negative output")

    def following(self, kind: str) -> list[Marker]:
        """Every marker that may stand behind an output that has ended."""
        return [marker for name in self.form.weights for marker in self.markers(kind, name)]

    def check_names(self) -> None:
        """Raises ``InputError`` for a name in ``template_names`` that no template has."""
        known = {t.name for t in self.templates.pairs} | {t.name for t in self.templates.graded}
        for name in self.form.template_names:
            if name not in known:
                hint = did_you_mean(name, sorted(known), what="it has:")
                raise InputError(f"--template-names: {self.templates.name} has no template {name!r}; {hint}")

    def _candidates(
        self, kind: str, name: str | None, *, several: bool = False
    ) -> Iterator[PairTemplate | GradedTemplate]:
        """``several``: second words are asked for, too, which training on "p" and "n" did not draw."""
        if name is not None:
            graded = [t for t in self.templates.graded if t.name == name]
            if not graded:
                yield self.templates.find(name)
            yield from graded
            return
        for structure in self.form.weights:
            if several and structure in ("p", "n"):
                continue
            yield from self.graded(kind) if structure == "chain" else self.pairs(kind, structure)
        for structure in ("pn", "np"):  # words that training did not draw, but that say the same
            yield from self.pairs(kind, structure)

    def _named(self, name: str) -> bool:
        return not self.form.template_names or name in self.form.template_names
