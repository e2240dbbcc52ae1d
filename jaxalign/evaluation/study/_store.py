"""The store: one SQLite file with the whole study in it, safe against retries, second tabs and a killed server."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxalign.errors import InputError
from jaxalign.evaluation._output_pairs import Pair
from jaxalign.evaluation.study._assignment import choose
from jaxalign.evaluation.study._begin import add_raters, assign, begin, read_study, settings
from jaxalign.evaluation.study._study import Study, rater_name
from jaxalign.evaluation.study._tables import connect

__all__ = ["Answer", "Conflict", "Judgement", "Store", "View"]

# A pair that somebody who came by himself was given and did not answer is given to another after this.
_RESERVED_S = 60 * 60


class Conflict(Exception):
    """Another submission came first: what this one answers (or changes) is no longer what the store has."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rater says of the pair at one position of his list."""

    id: str
    """Made by whoever sends it, once: sending it again changes nothing."""
    position: int
    preferences: Mapping[str, str]
    """Axis -> "first", "second" or "tie", of the two as they were shown."""
    seconds: float = 0.0
    comment: str = ""
    revises: str | None = None
    """The id of the answer that it replaces; None: there is none yet."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What one rater sees at one position; ``answer`` is what he said there, if he did."""

    position: int
    pair: Pair
    flipped: bool
    answer: Answer | None
    previous: int | None
    """The position that was answered before this one."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One answer to one question, as it stands now."""

    rater: str
    pair: Pair
    axis: str
    preferred: int | None
    """0 or 1, into the pair's systems; None: a tie."""
    flipped: bool
    """Whether the second system's output was shown first."""
    seconds: float
    """That the rater looked at the pair: all its questions, and changes of mind, together."""
    comment: str
    received: float
    """Seconds since 1970, UTC."""


class Store:
    """A study's file. Methods may be called from any thread; each is one transaction."""

    def __init__(self, path: str | Path) -> None:
        """Open the file of a study that has begun. Raises ``InputError`` where there is none."""
        self._lock = threading.RLock()
        self._database = connect(Path(path), create=False)
        self.study = read_study(self._database)
        self._axes = {axis.name for axis in self.study.axes}

    @classmethod
    def open(cls, path: str | Path, study: Study) -> "Store":
        """Begin a study, or go on with the one that the file holds.

        Raises:
            InputError: the file holds another study; the message names the flag that differs. Raters may be added to
                those there are where all rate all; title and instructions may always change.
        """
        begin(Path(path), study)
        return cls(path)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the file."""
        with self._lock:
            self._database.close()

    @property
    def secret(self) -> bytes:
        """That raters' keys are made with."""
        with self._reading():
            return str(settings(self._database)["secret"]).encode()

    def raters(self) -> dict[int, str]:
        """Names by id."""
        with self._reading():
            return dict(self._database.execute("SELECT id, name FROM raters ORDER BY id").fetchall())

    def join(self, name: str) -> int:
        """The id of a new rater. Raises ``InputError`` for a name that is none, or taken."""
        name = rater_name(name)
        with self._writing():
            if self._database.execute("SELECT 1 FROM raters WHERE folded = ?", (name.casefold(),)).fetchone():
                raise InputError("somebody has joined with this name: use the link you had, or another name")
            return add_raters(self._database, self.study, (name,))[0]

    def progress(self, rater: int) -> tuple[int, int]:
        """How many pairs the rater has answered, and of how many."""
        with self._reading():
            done = self._count("SELECT COUNT(*) FROM answers WHERE rater = ?", rater)
            total = self._count("SELECT COUNT(*) FROM assignments WHERE rater = ?", rater)
            if self._by_need:
                given, own = self._given(), self._own(rater)
                total += sum(
                    given.get(pair, 0) < (self.study.ratings_per_item or 0) and pair not in own
                    for pair in range(len(self.study.pairs))
                )
            return done, total

    def next_position(self, rater: int, elsewhere: set[int]) -> int | None:
        """Where the rater goes on: not where his other tabs are, unless only that is left; None: all is answered."""
        with self._writing():
            waiting = [
                position
                for (position,) in self._database.execute(
                    "SELECT position FROM assignments a WHERE rater = ? AND NOT EXISTS (SELECT 1 FROM submissions s "
                    "WHERE s.rater = a.rater AND s.position = a.position) ORDER BY position LIMIT ?",
                    (rater, len(elsewhere) + 1),
                )
            ]
            free = [position for position in waiting if position not in elsewhere]
            if free:
                return free[0]
            return self._take(rater) or (waiting[0] if waiting else None)

    def view(self, rater: int, position: int | None) -> View | None:
        """What the rater sees there; None where his list has no such position, or it is None."""
        with self._reading():
            found = self._database.execute(
                "SELECT pair, flipped FROM assignments WHERE rater = ? AND position = ?", (rater, position)
            ).fetchone()
            if found is None or position is None:
                return None
            return View(
                position=position,
                pair=self.study.pairs[found[0]],
                flipped=bool(found[1]),
                answer=self._answer(rater, position),
                previous=self._previous(rater, position),
            )

    def last_answered(self, rater: int) -> int | None:
        """The position that the rater answered last."""
        with self._reading():
            return self._previous(rater, -1)

    def submit(self, rater: int, answer: Answer) -> None:
        """Store an answer; it is on the disk when this returns. Stored already (the same id): nothing happens.

        Raises:
            InputError: no such position, or not every axis answered with a word that is offered.
            Conflict: the position has an answer that this one does not revise.
        """
        words = {"first", "second"} | ({"tie"} if self.study.ties else set())
        if set(answer.preferences) != self._axes or not set(answer.preferences.values()) <= words:
            raise InputError("every question needs one of the answers offered")
        with self._writing():
            taken = self._database.execute("SELECT rater FROM submissions WHERE id = ?", (answer.id,)).fetchone()
            if taken == (rater,):
                return
            if taken is not None:
                raise Conflict("this id is another rater's")
            place = (rater, answer.position)
            if not self._count("SELECT COUNT(*) FROM assignments WHERE rater = ? AND position = ?", *place):
                raise InputError("no such comparison in your list")
            before = self._answer(*place)
            if (before.id if before else None) != answer.revises:
                raise Conflict("it has been answered, in another tab or earlier; that answer was kept")
            number = self._database.execute(
                "INSERT INTO submissions (id, rater, position, seconds, comment, received) VALUES (?, ?, ?, ?, ?, ?)",
                (answer.id, *place, answer.seconds, answer.comment, time.time()),
            ).lastrowid
            rows = [(number, axis, preference) for axis, preference in answer.preferences.items()]
            self._database.executemany("INSERT INTO judgements VALUES (?, ?, ?)", rows)

    def judgements(self) -> list[Judgement]:
        """Every judgement as it stands: of changed answers the last. In the order in which they were first given."""
        with self._reading():
            rows = self._database.execute(
                "SELECT n.began, r.name, a.pair, j.axis, j.preference, a.flipped, n.seconds, s.comment, s.received "
                "FROM answers n JOIN submissions s USING (number) JOIN judgements j ON j.submission = n.number "
                "JOIN assignments a ON a.rater = n.rater AND a.position = n.position JOIN raters r ON r.id = n.rater"
            ).fetchall()
        order = {axis.name: index for index, axis in enumerate(self.study.axes)}
        return [
            Judgement(
                rater=rater,
                pair=self.study.pairs[pair],
                axis=axis,
                preferred=None if preference == "tie" else int((preference == "second") != bool(flipped)),
                flipped=bool(flipped),
                seconds=seconds,
                comment=comment,
                received=received,
            )
            for _, rater, pair, axis, preference, flipped, seconds, comment, received in sorted(
                rows, key=lambda row: (row[0], order[row[3]])
            )
        ]

    @property
    def _by_need(self) -> bool:
        """Whether pairs are given out as raters come, rather than dealt beforehand."""
        return not self.study.raters and self.study.ratings_per_item is not None

    def _take(self, rater: int) -> int | None:
        """Give the rater one more pair; its position, or None where none is left or all were dealt beforehand."""
        if not self._by_need:
            return None
        own = self._own(rater)
        wanted = self.study.ratings_per_item or 0
        pair = choose(self.study.seed, self.raters()[rater], len(self.study.pairs), self._given(), own, wanted)
        if pair is None:
            return None
        assign(self._database, self.study, rater, [pair], start=len(own) + 1)
        return len(own) + 1

    def _given(self) -> dict[int, int]:
        """How many raters have answered each pair, or were given it not long ago."""
        return dict(
            self._database.execute(
                "SELECT pair, COUNT(*) FROM assignments a WHERE given > ? OR EXISTS (SELECT 1 FROM submissions s "
                "WHERE s.rater = a.rater AND s.position = a.position) GROUP BY pair",
                (time.time() - _RESERVED_S,),
            ).fetchall()
        )

    def _own(self, rater: int) -> set[int]:
        return {pair for (pair,) in self._database.execute("SELECT pair FROM assignments WHERE rater = ?", (rater,))}

    def _answer(self, rater: int, position: int) -> Answer | None:
        row = self._database.execute(
            "SELECT number, id, seconds, comment FROM submissions WHERE rater = ? AND position = ? "
            "ORDER BY number DESC LIMIT 1",
            (rater, position),
        ).fetchone()
        if row is None:
            return None
        number, name, seconds, comment = row
        said = self._database.execute("SELECT axis, preference FROM judgements WHERE submission = ?", (number,))
        return Answer(id=name, position=position, preferences=dict(said.fetchall()), seconds=seconds, comment=comment)

    def _previous(self, rater: int, position: int) -> int | None:
        row = self._database.execute(
            "SELECT position FROM answers WHERE rater = ?1 AND began < COALESCE("
            "(SELECT began FROM answers WHERE rater = ?1 AND position = ?2), 1 << 62) ORDER BY began DESC LIMIT 1",
            (rater, position),
        ).fetchone()
        return row[0] if row else None

    def _count(self, query: str, *values: int) -> int:
        return int(self._database.execute(query, values).fetchone()[0])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """One state of the file for several queries."""
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN")
            try:
                yield
            finally:
                self._database.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk has ended it already
                    self._database.execute("ROLLBACK")
                raise
