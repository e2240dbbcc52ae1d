"""The tables of a study's file, and how one is opened."""

import os
import sqlite3
from pathlib import Path

from jaxalign.errors import InputError, nearest_path

__all__ = ["SCHEMA", "connect"]

_APPLICATION, _VERSION = 0x6A785374, 1  # "jxSt"

# What was submitted is never changed or deleted: a changed mind is another submission, and the newest counts.
SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY, row INTEGER NOT NULL, prompt TEXT NOT NULL,
    first_system TEXT NOT NULL, second_system TEXT NOT NULL, first_output TEXT NOT NULL, second_output TEXT NOT NULL);
CREATE TABLE raters (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, joined REAL NOT NULL);
CREATE TABLE assignments (
    rater INTEGER NOT NULL REFERENCES raters, position INTEGER NOT NULL, pair INTEGER NOT NULL REFERENCES pairs,
    flipped INTEGER NOT NULL, given REAL NOT NULL, PRIMARY KEY (rater, position), UNIQUE (rater, pair));
CREATE TABLE submissions (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, rater INTEGER NOT NULL, position INTEGER NOT NULL,
    seconds REAL NOT NULL, comment TEXT NOT NULL, received REAL NOT NULL,
    FOREIGN KEY (rater, position) REFERENCES assignments);
CREATE INDEX submissions_by_rater ON submissions (rater, position, number);
CREATE TABLE judgements (
    submission INTEGER NOT NULL REFERENCES submissions, axis TEXT NOT NULL,
    preference TEXT NOT NULL CHECK (preference IN ('first', 'second', 'tie')),
    PRIMARY KEY (submission, axis)) WITHOUT ROWID;
CREATE VIEW answers AS SELECT rater, position, MIN(number) AS began, MAX(number) AS number,
    SUM(seconds) AS seconds FROM submissions GROUP BY rater, position;
"""


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open a study's file, or begin an empty one (no tables yet) that only its owner may read: it holds links.

    A commit is on the disk before it returns, whatever dies after it.

    Raises:
        InputError: no such file, no study's file, or one that cannot be written.
    """
    if not path.exists():
        if not create:
            raise InputError(f"--store: {path}: no such file{nearest_path(path)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise InputError(f"--store: {path}: cannot be opened as a study's file: {error}") from None
    if (tables or not create) and (application, version) != (_APPLICATION, _VERSION):
        connection.close()
        raise InputError(f"--store: {path}: not a study's file (of this version); nothing was written")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
