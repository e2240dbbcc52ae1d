"""A judge on loopback that speaks the chat-completions protocol, misbehaves as it is told, and counts what it is asked.

    python -m benchmarks._judge_server --latency 0.01 --faults 0.05

prints its address, answers until it is killed, and gives its counts under ``/counts``.
"""

import argparse
import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Act", "Behaviour", "JudgeServer", "faulty", "key_of", "verdict_of"]


@dataclass(frozen=True, kw_only=True)
class Act:
    """What is done with one request."""

    content: str | None = None
    """The judge's words; None = ``verdict_of`` the question."""
    body: str | None = None
    """The whole body, in place of a completion."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    delay: float = 0.0
    """Seconds before the first byte."""
    drip: float = 0.0
    """Seconds before each following byte."""
    reset: bool = False
    """Break the connection instead of answering."""


Behaviour = Callable[[str, int], Act]
"""``f(question, asked before) -> what to do``."""


def key_of(question: str) -> str:
    """What a question is counted by: "item-17" where it says so, else its digest."""
    found = re.search(r"item-\d+", question)
    return found[0] if found else hashlib.sha256(question.encode()).hexdigest()


def verdict_of(question: str) -> str:
    """A verdict that depends on the question alone."""
    letter = "AB"[hashlib.sha256(question.encode()).digest()[0] & 1]
    return f"Comparison: the one is a little better than the other.\nPreferred: {letter}"


def faulty(rate: float, *, latency: float, seed: int = 0) -> Behaviour:
    """A share ``rate`` of requests fails, in every way there is, drawn from the seed, the question and how often it was
    asked."""
    ways = (
        Act(status=500, body="internal error"),
        Act(status=503, body="{}"),
        Act(status=429, body="{}", headers={"Retry-After": "0.05"}),
        Act(reset=True),
        Act(body='{"choices": ['),
        Act(body='{"choices": []}'),
        Act(body=""),
    )

    def behave(question: str, asked: int) -> Act:
        draw = int.from_bytes(hashlib.sha256(f"{seed} {asked} {key_of(question)}".encode()).digest()[:8])
        if draw % 10_000 < rate * 10_000:
            return ways[draw // 10_000 % len(ways)]
        return Act(delay=latency)

    return behave


class JudgeServer:
    """The server, in a thread of its own: ``with JudgeServer(behave) as server: ... server.url``."""

    def __init__(self, behave: Behaviour, *, port: int = 0) -> None:
        self._behave, self._port = behave, port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.asked: Counter[str] = Counter()
        """Requests, by the question's key."""
        self.requests: list[dict[str, Any]] = []
        """The last requests: headers and body."""
        self.most_at_once = 0
        """Most requests that were under way together."""
        self._under_way = 0

    @property
    def url(self) -> str:
        """The base URL that a client takes."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "JudgeServer":
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self._port))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if lines[0].startswith("GET /counts"):
                    await self._send(writer, Act(body=json.dumps(self.asked)), "")
                else:
                    await self._answer(writer, [line for line in lines[1:] if line], json.loads(body))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the server is to end
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, headers: list[str], body: Any) -> None:
        question = body["messages"][-1]["content"]
        key = key_of(question)
        act = self._behave(question, self.asked[key])
        self.asked[key] += 1
        self.requests = [*self.requests[-99:], {"headers": headers, "body": body}]
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            if act.delay:
                await asyncio.sleep(act.delay)
            if act.reset:
                writer.transport.abort()
                raise ConnectionResetError
            await self._send(writer, act, question)
        finally:
            self._under_way -= 1

    async def _send(self, writer: asyncio.StreamWriter, act: Act, question: str) -> None:
        body = act.body
        if body is None:
            content = verdict_of(question) if act.content is None else act.content
            choice = {"index": 0, "finish_reason": act.finish_reason}
            usage = {"prompt_tokens": len(question.split()), "completion_tokens": len(content.split())}
            body = json.dumps({
                "id": "0", "object": "chat.completion", "created": 0, "model": "loopback", "usage": usage,
                "choices": [{**choice, "message": {"role": "assistant", "content": content}}],
            })  # fmt: skip
        data = body.encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in act.headers.items())
        head = f"HTTP/1.1 {act.status} x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{more}\r\n"
        if not act.drip:
            writer.write(head.encode() + data)
            await writer.drain()
            return
        writer.write(head.encode())
        for place in range(len(data)):
            writer.write(data[place : place + 1])
            await writer.drain()
            await asyncio.sleep(act.drip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.01, help="seconds before an answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail, in every way")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with JudgeServer(
        faulty(arguments.faults, latency=arguments.latency, seed=arguments.seed), port=arguments.port
    ) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
