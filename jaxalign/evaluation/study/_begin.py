"""How a study gets into its file, and what of it is compared when the same command goes on with it."""

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.evaluation._output_pairs import Pair
from jaxalign.evaluation.study._assignment import is_flipped, plan
from jaxalign.evaluation.study._axes import Axis
from jaxalign.evaluation.study._study import Study
from jaxalign.evaluation.study._tables import SCHEMA, connect

__all__ = ["add_raters", "assign", "begin", "read_study", "settings"]


def begin(path: Path, study: Study) -> None:
    """Write a study into a new file, all or nothing; or check that the file holds this one, and add its new raters.

    Raises:
        InputError: the file holds another study; the message names the flag that differs.
    """
    database = connect(path, create=True)
    try:
        database.execute("BEGIN IMMEDIATE")
        if database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            _check(path, settings(database), study)
        else:
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.executemany(
                "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (index, pair.row, json.dumps(pair.prompt), *pair.systems, *map(json.dumps, pair.outputs))
                    for index, pair in enumerate(study.pairs)
                ],
            )
            database.execute("INSERT INTO settings VALUES ('secret', ?)", (json.dumps(secrets.token_hex(32)),))
        values = study.settings() | {"title": study.title, "instructions": study.instructions}
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)
        add_raters(database, study, study.raters)
        database.execute("COMMIT")
    finally:
        database.close()


def settings(database: sqlite3.Connection) -> dict[str, Any]:
    """Everything that is set, by name."""
    return {name: json.loads(value) for name, value in database.execute("SELECT name, value FROM settings")}


def read_study(database: sqlite3.Connection) -> Study:
    """The study in a file."""
    held = settings(database)
    rows = database.execute(
        "SELECT row, prompt, first_system, second_system, first_output, second_output FROM pairs ORDER BY id"
    )
    return Study(
        pairs=[
            Pair(row, json.loads(prompt), (first, second), (json.loads(first_output), json.loads(second_output)))
            for row, prompt, first, second, first_output, second_output in rows
        ],
        axes=tuple(Axis(*axis) for axis in held["axes"]),
        title=held["title"],
        instructions=held["instructions"],
        ties=held["ties"],
        raters=tuple(held["raters"]),
        ratings_per_item=held["ratings-per-item"],
        ours=held["ours"],
        seed=held["seed"],
    )


def add_raters(database: sqlite3.Connection, study: Study, names: Sequence[str]) -> list[int]:
    """The ids of raters, each with the pairs that are known beforehand; those who are there stay as they are."""
    known = dict(database.execute("SELECT folded, id FROM raters").fetchall())
    new = [name for name in names if name.casefold() not in known]
    if study.raters or study.ratings_per_item is None:
        dealt = plan(study.seed, len(study.pairs), study.raters or new, study.ratings_per_item) if new else {}
    else:
        dealt = {}  # pairs are given out as raters come back for more
    for name in new:
        (rater,) = database.execute(
            "INSERT INTO raters (name, folded, joined) VALUES (?, ?, ?) RETURNING id",
            (name, name.casefold(), time.time()),
        ).fetchone()
        known[name.casefold()] = rater
        assign(database, study, rater, dealt.get(name, []), start=1)
    return [known[name.casefold()] for name in names]


def assign(database: sqlite3.Connection, study: Study, rater: int, pairs: Sequence[int], *, start: int) -> None:
    """Give a rater pairs, at positions from ``start``."""
    (name,) = database.execute("SELECT name FROM raters WHERE id = ?", (rater,)).fetchone()
    now = time.time()
    rows = [
        (rater, position, pair, is_flipped(study.seed, name, pair), now)
        for position, pair in enumerate(pairs, start=start)
    ]
    database.executemany("INSERT INTO assignments VALUES (?, ?, ?, ?, ?)", rows)


def _check(path: Path, before: dict[str, Any], study: Study) -> None:
    for name, value in study.settings().items():
        was = before[name]
        more_raters = name == "raters" and was and study.ratings_per_item is None and set(was) <= set(value)
        if was == value or more_raters:
            continue
        if name == "pairs":
            raise InputError(f"--pairs: not the pairs that {path} holds; use another --store")
        raise InputError(f"--{name}: was {was!r:.80} in {path}, is {value!r:.80}; use another --store")
