"""Verdicts on disk: one row each, written as it is given, so that nothing is asked twice."""

import contextlib
import glob
import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.evaluation._comparison import Comparison, Verdict
from jaxalign.evaluation.judges._reply import valid_text

__all__ = ["VerdictCache", "verdict_key"]

_FORMAT = 1
_TOGETHER = 500  # keys in one query; SQLite once took at most 999
_VERDICT = "preference, text, prompt_tokens, completion_tokens"
_PATIENCE = 60.0  # seconds that a write waits for another process's
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, version TEXT NOT NULL, axis TEXT NOT NULL, prompt TEXT NOT NULL,
    first TEXT NOT NULL, second TEXT NOT NULL, preference TEXT NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
"""


def verdict_key(name: str, version: str, comparison: Comparison) -> str:
    """A verdict's name: SHA-256 of judge, version (it holds the hash of the prompts), prompt, both outputs, axis."""
    parts = [name, version, comparison.prompt, comparison.first, comparison.second, comparison.axis]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class VerdictCache:
    """A SQLite file of verdicts, for any number of threads and of processes on one machine.

    A verdict is a row of ``verdicts``, in a transaction of its own: a killed process loses none that was stored (a
    machine without power may lose the last ones, and no more). A comparison that is being asked is a row of ``claims``
    by its owner, who holds a lock on a file beside the cache while he lives: a claim of the dead counts for nothing.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, made if it is not there.

        Raises:
          InputError: a file that is no such cache, or of a later version.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._owner = uuid.uuid4().hex
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: no cache of verdicts that can be used ({error})") from None
        for file in self.path.parent.glob(f"{glob.escape(self.path.name)}-owner-*"):
            _bury(file)
        self._alive = _hold(self._owner_file(self._owner))

    def close(self) -> None:
        """Give the file back; another process may then have what was claimed and not told."""
        with self._lock:
            if self._alive >= 0:
                self._execute("DELETE FROM claims WHERE owner = ?", self._owner)
                self._connection.close()
                self._owner_file(self._owner).unlink(missing_ok=True)
                os.close(self._alive)
                self._alive = -1

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many verdicts it holds."""
        return int(self._execute("SELECT count(*) FROM verdicts")[0][0])

    def find(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts of those keys that have one."""
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), _TOGETHER):
            part = keys[start : start + _TOGETHER]
            marks = ", ".join("?" * len(part))
            query = f"SELECT key, {_VERDICT} FROM verdicts WHERE key IN ({marks})"
            for key, preference, text, prompt_tokens, completion_tokens in self._execute(query, *part):
                found[key] = Verdict(
                    preference=preference, text=text, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
                )
        return found

    def has_answers(self, name: str, version: str) -> bool:
        """Whether it holds a valid verdict of this judge, whatever was compared."""
        query = "SELECT 1 FROM verdicts WHERE judge = ? AND version = ? AND preference != 'invalid' LIMIT 1"
        return bool(self._execute(query, valid_text(name), valid_text(version)))

    def store(self, name: str, version: str, comparison: Comparison, verdict: Verdict) -> None:
        """Write one verdict; the first on a comparison stays."""
        self._execute(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            verdict_key(name, version, comparison),
            *map(valid_text, (name, version, comparison.axis, comparison.prompt, comparison.first, comparison.second)),
            *(verdict.preference, valid_text(verdict.text), verdict.prompt_tokens, verdict.completion_tokens),
            time.time(),
        )

    @contextlib.contextmanager
    def claim(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Those keys that have no verdict and that nobody asks: within the context they are this caller's to ask."""
        claimed: list[str] = []
        self._drop_claims_of_the_dead()
        taken = {key for (key,) in self._execute("SELECT key FROM claims")}  # who waits for others only reads
        if free := [key for key in keys if key not in taken]:
            with self._transaction():
                for key in free:
                    row = self._connection.execute(
                        "INSERT OR IGNORE INTO claims SELECT ?, ? "
                        "WHERE NOT EXISTS (SELECT 1 FROM verdicts WHERE key = ?)",
                        (key, self._owner, key),
                    )
                    if row.rowcount == 1:
                        claimed.append(key)
        try:
            yield claimed
        finally:
            if claimed:
                with self._transaction():
                    self._connection.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key in claimed])

    def _drop_claims_of_the_dead(self) -> None:
        for (owner,) in self._execute("SELECT DISTINCT owner FROM claims"):
            if owner != self._owner and _bury(self._owner_file(owner)):
                self._execute("DELETE FROM claims WHERE owner = ?", owner)

    def _owner_file(self, owner: str) -> Path:
        return self.path.with_name(f"{self.path.name}-owner-{owner}")

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _prepare(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:  # the change to WAL does not wait for others as writes do
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FORMAT):
                raise InputError(f"{self.path}: a cache of version {version}, this program knows {_FORMAT}")
            for statement in _TABLES.strip().split(";\n"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_FORMAT}")


def _hold(path: Path) -> int:
    """Lock a file for as long as this process lives, or until the descriptor that is returned is closed."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)  # somebody took it for a dead one's before it was locked


def _bury(path: Path) -> bool:
    """Whether nobody alive holds the file, which is then removed."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
