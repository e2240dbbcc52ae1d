"""The cache: nothing asked twice, by threads, by processes, after kill -9; nothing lost."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks._judge_server import Act, JudgeServer
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import Comparison, EndpointError, Verdict, VerdictCache, compare
from jaxalign.evaluation.judges._cache import verdict_key
from tests.evaluation.judges.run_compare import items, judge
from tests.evaluation.judges.test_compare import Told, longer, outcomes

ROOT = Path(__file__).parents[3]
COMPARISON = Comparison(prompt="p", first="one", second="two")


def stored(path):
    """The prompts with a verdict, read by somebody else."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {prompt.split()[0] for (prompt,) in connection.execute("SELECT prompt FROM verdicts")}


def start(url, path, count):
    command = [sys.executable, "-m", "tests.evaluation.judges.run_compare", url, str(path), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_verdict_comes_back_as_it_was(tmp_path):
    verdict = Verdict(preference="tie", text="words\x00 and\nlines, é ≠", prompt_tokens=7, completion_tokens=3)
    key = verdict_key("name", "version", COMPARISON)
    with VerdictCache(tmp_path / "deep" / "cache.sqlite") as cache:
        assert cache.find([key]) == {}
        cache.store("name", "version", COMPARISON, verdict)
        cache.store("name", "version", COMPARISON, Verdict(preference="first"))  # the first stays
        assert cache.find([key, "other"]) == {key: verdict}
    with VerdictCache(tmp_path / "deep" / "cache.sqlite") as cache:
        assert cache.find([key]) == {key: verdict}
        assert len(cache) == 1


def test_the_key_holds_everything_that_decides():
    keys = {
        verdict_key(name, version, Comparison(prompt=prompt, first=first, second=second, axis=axis))
        for name in "ab" for version in "ab" for prompt in "ab" for first in "ab" for second in "ab" for axis in "ab"
    }  # fmt: skip
    assert len(keys) == 64


def test_a_second_evaluation_asks_nothing(tmp_path):
    with VerdictCache(tmp_path / "cache.sqlite") as cache:
        first = compare(Told(longer), items(30), seed=0, cache=cache)
        again = Told(longer)
        assert compare(again, items(30), seed=0, cache=cache) == first
        assert not again.asked
        again.version = "2"
        compare(again, items(30), seed=0, cache=cache)
        assert len(again.asked) == 30
        assert len(cache) == 60


def test_what_was_told_before_a_failure_is_kept(tmp_path):
    path = tmp_path / "cache.sqlite"
    with JudgeServer(lambda question, before: Act(status=500) if "item-3 " in question and before < 2 else Act()) as s:
        with VerdictCache(path) as cache:
            with pytest.raises(EndpointError, match="1 of 12"):
                compare(judge(s.url, max_attempts=2), items(12), seed=0, cache=cache)
            assert len(cache) == 11
            compare(judge(s.url), items(12), seed=0, cache=cache)
        assert s.asked == Counter({f"item-{i}": 1 + 2 * (i == 3) for i in range(12)})


def test_half_characters_can_be_stored(tmp_path):
    with VerdictCache(tmp_path / "cache.sqlite") as cache:
        broken = Comparison(prompt="\ud800", first="a", second="b")
        cache.store("n", "v", broken, Verdict(preference="first", text="\udfff"))
        assert cache.find([verdict_key("n", "v", broken)])[verdict_key("n", "v", broken)].text == "?"


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    path = tmp_path / "cache.sqlite"
    with JudgeServer(lambda *_: Act(delay=0.05)) as server:
        known, kills = {}, 0
        for least in (30, 90):
            process = start(server.url, path, 150)
            while sum(server.asked.values()) < least:
                assert process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
            kills += 1
            for key in stored(path):
                known.setdefault(key, server.asked[key])
        assert 60 < len(known) < 150
        process = start(server.url, path, 150)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert len(output.split()) == 150
        assert {key: server.asked[key] for key in known} == known  # none again once it was stored
        assert len(server.asked) == 150
        assert sum(server.asked.values()) <= 150 + 8 * kills  # those under way when it was killed
    assert len(stored(path)) == 150
    with VerdictCache(path) as cache:
        assert cache._execute("PRAGMA integrity_check") == [("ok",)]
        assert cache._execute("SELECT count(*) FROM claims") == [(0,)]
    assert [file.name for file in tmp_path.iterdir()] == ["cache.sqlite"]  # nothing of the dead lies about


def test_two_processes_share_the_asking(tmp_path):
    path = tmp_path / "cache.sqlite"
    with JudgeServer(lambda *_: Act(delay=0.03)) as server:
        processes = [start(server.url, path, 120) for _ in range(2)]
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert said[0] == said[1]
        assert server.asked == Counter({f"item-{i}": 1 for i in range(120)})


def test_one_of_two_processes_is_killed(tmp_path):
    """The other takes over what it had claimed, without waiting for anything but its death."""
    path = tmp_path / "cache.sqlite"
    with JudgeServer(lambda *_: Act(delay=0.05)) as server:
        first = start(server.url, path, 100)
        while sum(server.asked.values()) < 20:
            time.sleep(0.005)
        with VerdictCache(path) as cache:
            done = []
            thread = threading.Thread(
                target=lambda: done.append(compare(judge(server.url), items(100), seed=0, cache=cache))
            )
            thread.start()
            time.sleep(0.3)
            first.kill()
            first.wait(30)
            thread.join(60)
            assert len(done[0]) == 100
        assert len(server.asked) == 100
        assert sum(server.asked.values()) <= 108


def test_threads_on_one_cache_ask_each_question_once(tmp_path):
    path = tmp_path / "cache.sqlite"
    with JudgeServer(lambda *_: Act(delay=0.01)) as server, VerdictCache(path) as one, VerdictCache(path) as other:
        found = []

        def run(cache, part):
            found.append(outcomes(compare(judge(server.url), items(60)[part], seed=0, cache=cache)))

        parts = [(one, slice(0, 40)), (one, slice(20, 60)), (other, slice(10, 50)), (other, slice(0, 60))]
        threads = [threading.Thread(target=run, args=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 4
        assert server.asked == Counter({f"item-{i}": 1 for i in range(60)})


def test_claims_of_the_dead_count_for_nothing(tmp_path):
    with VerdictCache(tmp_path / "cache.sqlite") as cache, VerdictCache(tmp_path / "cache.sqlite") as alive:
        cache._execute("INSERT INTO claims VALUES ('a', 'somebody long dead')")
        with alive.claim(["b"]) as claimed, cache.claim(["a", "b", "c"]) as ours:
            assert (claimed, ours) == (["b"], ["a", "c"])
        with cache.claim(["b"]) as ours:
            assert ours == ["b"]
        cache.store("name", "version", COMPARISON, Verdict(preference="first"))
        with cache.claim([verdict_key("name", "version", COMPARISON), "b"]) as ours:  # it has a verdict by now
            assert ours == ["b"]


def test_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    (tmp_path / "cache.sqlite-owner-dead").touch()
    with VerdictCache(tmp_path / "cache.sqlite"), VerdictCache(tmp_path / "cache.sqlite"):
        owners = {file.name for file in tmp_path.glob("*-owner-*")}
        assert len(owners) == 2
        assert "cache.sqlite-owner-dead" not in owners
    assert [file.name for file in tmp_path.iterdir()] == ["cache.sqlite"]


def test_files_that_are_no_cache(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to have a header of a hundred bytes" * 3)
    with pytest.raises(
        InputError, match=r"text.sqlite: no cache of verdicts that can be used \(file is not a database"
    ):
        VerdictCache(text)
    later = tmp_path / "later.sqlite"
    with contextlib.closing(sqlite3.connect(later)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match=r"later.sqlite: a cache of version 99, this program knows 1"):
        VerdictCache(later)
    with pytest.raises(InputError, match="unable to open"):
        VerdictCache(tmp_path)
