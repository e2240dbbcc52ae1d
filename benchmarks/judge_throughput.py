"""An evaluation by an endpoint that is killed again and again: what is lost, what is asked twice, what it costs.

    python -m benchmarks.judge_throughput

A judge on loopback (a process of its own, ``--latency`` seconds an answer) is asked ``--comparisons`` questions, three
times over:

1. by ``compare`` in a process that is killed (kill -9) ``--kills`` times, each time when a random number of requests
   has come in since it began to ask, and started anew; here ``--faults`` of all requests fail besides;
2. by the bare ``openai`` client: as many requests at a time, nothing retried, read or stored;
3. by ``compare`` with ``OpenAIJudge`` and a cache; 2 and 3 in turn, ``--rounds`` times a part of the questions.

The server counts requests by question. Asked again "after its verdict was stored": the question had a row in the cache
when a killed process was dead, and came in again; this must not happen. Asked again "under way": it had come in and had
no row yet at a kill; nobody can know its answer. Faults: asked again because the answer was an error, by design.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path

from benchmarks._judge_server import key_of
from jaxalign.evaluation.judges import EndpointConfig, Item, OpenAIJudge, VerdictCache, compare, load_prompts, shown

POLL = 0.02


def items(count: int) -> list[Item]:
    """Outputs of some length, each question with its number in it."""
    text = "the film was long and the plot thin, but there was much to see in it " * 8
    return [Item(prompt=f"item-{i}. {text}", ours=f"one {i} {text}", theirs=f"two {i} {text}") for i in range(count)]


def config(url: str, concurrency: int) -> EndpointConfig:
    return EndpointConfig(
        model="loopback",
        base_url=url,
        api_key_variable=None,
        concurrency=concurrency,
        first_pause=0.02,
        max_attempts=20,
    )


def bare(url: str, count: int, concurrency: int) -> tuple[float, float]:
    """Seconds and CPU seconds of the client alone."""
    import openai

    prompts = load_prompts("summaries")
    questions = iter([prompts.render(shown(item, 0)[0], ties=False) for item in items(count)])

    async def ask() -> None:
        async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

            async def work() -> None:
                for question in questions:
                    answer = await client.chat.completions.create(
                        model="loopback",
                        messages=[{"role": "user", "content": question}],
                        max_tokens=256,
                        temperature=0,
                        seed=0,
                    )
                    assert answer.choices[0].message.content

            await asyncio.gather(*[work() for _ in range(concurrency)])

    start, cpu = time.perf_counter(), time.process_time()
    asyncio.run(ask())
    return time.perf_counter() - start, time.process_time() - cpu


def ours(url: str, count: int, concurrency: int, path: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of the whole evaluation in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    with VerdictCache(path) as cache:
        judged = compare(OpenAIJudge(config(url, concurrency)), items(count), seed=0, cache=cache)
    assert len(judged) == count
    return time.perf_counter() - start, time.process_time() - cpu


def counts(url: str) -> Counter[str]:
    """Requests by question, as the server has them."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return Counter(json.load(answer))


def stored(path: Path) -> set[str]:
    """The questions with a verdict, on a connection of our own."""
    with closing(sqlite3.connect(path)) as connection:
        return {key_of(prompt) for (prompt,) in connection.execute("SELECT prompt FROM verdicts")}


class Server:
    """The loopback judge as a process."""

    def __init__(self, latency: float, faults: float, seed: int) -> None:
        command = [sys.executable, "-m", "benchmarks._judge_server", "--latency", str(latency)]
        self._process = subprocess.Popen(
            [*command, "--faults", str(faults), "--seed", str(seed)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def killed(arguments: argparse.Namespace, path: Path) -> None:
    """The evaluation that is killed; prints what became of it."""
    draw = random.Random(arguments.seed)
    count, known, under_way, before = arguments.comparisons, dict[str, int](), Counter[str](), Counter[str]()
    command = [sys.executable, "-m", "benchmarks.judge_throughput", "--child", str(path)]
    command += ["--comparisons", str(count), "--concurrency", str(arguments.concurrency), "--url"]
    with Server(arguments.latency, arguments.faults, arguments.seed) as server:
        for kill in range(arguments.kills + 1):
            process = subprocess.Popen([*command, server.url])
            if kill == arguments.kills:
                assert process.wait() == 0
                break
            # Random, and spread so that every kill falls while there is something left to ask.
            until = counts(server.url).total() + draw.uniform(0.3, 1.0) * count / (arguments.kills + 1)
            while counts(server.url).total() < until:
                assert process.poll() is None, "it was done before it was killed"
                time.sleep(POLL)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            asked, rows = counts(server.url), stored(path)
            for key in rows:
                known.setdefault(key, asked[key])
            under_way.update(key for key in asked if key not in rows and asked[key] > before[key])
            before = asked
            print(f"kill {kill + 1}: {asked.total():,} requests so far, {len(rows):,} verdicts stored", flush=True)
        asked, rows = counts(server.url), stored(path)
    again = sum(asked[key] - earlier for key, earlier in known.items())
    repeated = asked.total() - len(asked)
    print(
        f"verdicts: {len(rows):,} of {count:,}; lost of those stored at a kill: {len(known.keys() - rows)}\n"
        f"asked again after its verdict was stored: {again}\n"
        f"asked more than once: {repeated:,} requests; questions that were under way or failing at a kill: "
        f"{len(under_way)}"
    )
    if not arguments.faults:
        print(f"asked more than once without having been under way at a kill: {repeated - under_way.total()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.01, help="seconds before each answer")
    parser.add_argument(
        "--faults", type=float, default=0.0, help="share of requests that fail in the run that is killed"
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        ours(arguments.url, arguments.comparisons, arguments.concurrency, arguments.child)
        return
    part = arguments.comparisons // arguments.rounds
    alone, whole, again = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        killed(arguments, Path(folder) / "killed.sqlite")
        with Server(arguments.latency, 0.0, 0) as server:
            bare(server.url, 200, arguments.concurrency)  # imports, first connections
            for number in range(arguments.rounds):  # in turn: other work on the machine meets both
                path = Path(folder) / f"{number}.sqlite"
                alone.append(bare(server.url, part, arguments.concurrency))
                whole.append(ours(server.url, part, arguments.concurrency, path))
                again.append(ours(server.url, part, arguments.concurrency, path))
    for name, found in (("bare client", alone), ("compare", whole), ("compare, all from the cache", again)):
        seconds, cpu = (statistics.median(column) / part for column in zip(*found, strict=True))
        print(f"{name}: {1 / seconds:,.0f} comparisons/s, {1e3 * seconds:.2f} ms each, of CPU {1e3 * cpu:.2f} ms")
    more = [
        statistics.median((mine[k] - its[k]) * 1e3 / part for mine, its in zip(whole, alone, strict=True))
        for k in (0, 1)
    ]
    print(f"overhead of compare, median of rounds: {more[0]:.2f} ms a comparison, of CPU {more[1]:.2f} ms")


if __name__ == "__main__":
    main()
