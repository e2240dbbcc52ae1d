"""A judge behind an OpenAI-compatible endpoint: many questions at a time, asked again until each has its answer."""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from jaxalign.errors import InputError
from jaxalign.evaluation._comparison import Comparison, Verdict
from jaxalign.evaluation.judges._answer import read_answer
from jaxalign.evaluation.judges._limits import Pace, back_off
from jaxalign.evaluation.judges._prompts import JudgePrompts, load_prompts
from jaxalign.evaluation.judges._reply import Failure, Reply, failure_of, read_reply, valid_text

__all__ = ["AllRefused", "EndpointConfig", "EndpointError", "OpenAIJudge", "Usage"]

OnVerdict = Callable[[int, Verdict], None]

_REFUSED = "refused: "
_LONGEST = 300  # characters of a reason
_CHARACTERS_A_TOKEN = 4  # of English, for the estimate that the answer's own count corrects


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Which endpoint, how it is asked, how hard and how patiently."""

    model: str
    """The model's name there."""
    base_url: str = "https://api.openai.com/v1"
    """Where the API begins; any server that speaks ``/chat/completions``."""
    api_key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable with the API key; None for a server that asks for none. The key itself is never a flag, and
    is neither logged nor stored."""
    temperature: float | None = 0.0
    """Sampling temperature; None leaves it to the server (some models refuse the field)."""
    max_tokens: int = 256
    """Most tokens of an answer; one that is cut is invalid."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls that limit."""
    sampling_seed: int | None = 0
    """Seed that the server is given; None sends none."""
    concurrency: int = 16
    """Requests under way at a time."""
    timeout: float = 60.0
    """Seconds for one request, from connecting to the last byte."""
    max_attempts: int = 6
    """How often one comparison is asked before it is given up."""
    first_pause: float = 0.5
    """Seconds to wait after a first failure; doubled after each, with jitter. A longer Retry-After is kept to."""
    longest_pause: float = 60.0
    """Most seconds to wait between two attempts. A server that asks for more is given up for that comparison."""
    give_up_after: int = 32
    """So many comparisons given up one after another, none answered in between: the rest is not asked. So many refused
    before any is answered: it is the settings that are refused."""
    requests_per_minute: float | None = None
    """Most requests a minute, spread evenly; None = no limit."""
    tokens_per_minute: float | None = None
    """Most tokens a minute, prompt and answer; None = no limit."""
    prompt_price: float = 0.0
    """Price of a million prompt tokens, in whatever currency."""
    completion_price: float = 0.0
    """Price of a million tokens of answers."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError("--base-url: expected http://HOST... or https://HOST...")
        if "@" in url.netloc or url.query:
            raise InputError("--base-url: holds credentials or a query; a key belongs in the environment")
        for name in ("max_tokens", "concurrency", "max_attempts", "give_up_after"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 1, is {getattr(self, name)}")
        for name in ("timeout", "first_pause", "longest_pause", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name.replace('_', '-')}: must be above 0, is {value}")
        for name in ("temperature", "prompt_price", "completion_price"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"--{name.replace('_', '-')}: must be at least 0, is {value}")


class EndpointError(RuntimeError):
    """Some comparisons have no verdict, because the endpoint gave none; the others' verdicts are kept."""


class AllRefused(InputError):
    """Every comparison was refused: it is the settings that are, unless they are known to have been answered before."""

    def __init__(self, message: str, verdicts: Sequence[tuple[int, Verdict]]) -> None:
        super().__init__(message)
        self.verdicts = tuple(verdicts)
        """Index and "invalid" verdict of each, for whoever knows better."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a judge has used since it was made."""

    requests: int = 0
    """Requests sent, those that failed included."""
    failures: int = 0
    """Requests that brought no answer."""
    prompt_tokens: int = 0
    """As the endpoint counts them."""
    completion_tokens: int = 0
    """As the endpoint counts them."""
    cost: float = 0.0
    """Of these tokens, by the config's prices."""


@dataclass
class _Course:
    """How one call of ``judge`` goes."""

    given_up: list[str] = field(default_factory=list)
    in_a_row: int = 0
    answered: bool = False
    refused: list[tuple[int, Verdict]] = field(default_factory=list)
    """Verdicts kept back until an answer shows that the endpoint refuses questions, not whoever asks."""

    def release(self, on_verdict: OnVerdict) -> None:
        """Give away what is kept back."""
        while self.refused:
            on_verdict(*self.refused.pop())


class OpenAIJudge:
    """A model behind an OpenAI-compatible endpoint.

    The key is read from the environment when the judge asks, given to the client, and struck from every text that
    leaves this class.
    """

    def __init__(
        self, config: EndpointConfig, prompts: JudgePrompts | str = "summaries", *, ties: bool = False
    ) -> None:
        """Make a judge; nothing is asked yet.

        Args:
          config: the endpoint.
          prompts: what is asked: ``load_prompts``, or what it takes.
          ties: whether "tie" is offered.
        """
        self._config, self._ties = config, ties
        self._prompts = prompts if isinstance(prompts, JudgePrompts) else load_prompts(prompts)
        self._requests, self._tokens = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self._counts = {"requests": 0, "failures": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._config.model

    @property
    def version(self) -> str:
        """Endpoint, sampling settings and prompts."""
        config = self._config
        return (
            f"{config.base_url} temperature={config.temperature} max_tokens={config.max_tokens} "
            f"seed={config.sampling_seed} ties={self._ties} prompts={self._prompts.fingerprint()}"
        )

    @property
    def usage(self) -> Usage:
        """Requests, tokens and their cost so far; verdicts that a cache knew cost nothing."""
        with self._lock:
            counts = dict(self._counts)
        config = self._config
        cost = (
            counts["prompt_tokens"] * config.prompt_price + counts["completion_tokens"] * config.completion_price
        ) / 1e6
        return Usage(**counts, cost=cost)

    def check(self) -> None:
        """Say beforehand what ``judge`` would refuse: nothing is sent.

        Raises:
          InputError: no client installed, no key in the environment.
        """
        try:
            import openai  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError("openai is not installed; run: pip install 'jaxalign[judges]'") from error
        self._key()

    def judge(self, comparisons: Sequence[Comparison], on_verdict: OnVerdict) -> None:
        """As ``Judge`` has it; a comparison that the endpoint refuses for good is "invalid", with its reason for words.

        Raises:
          InputError: no client installed, no key in the environment, the key is refused, no such model or path, all of
            the first comparisons refused: asking again cannot help.
          AllRefused: every comparison refused, however few; no verdict was told.
          EndpointError: some comparisons were given up, once the others are done.
        """
        if not comparisons:
            return
        questions = [valid_text(self._prompts.render(one, ties=self._ties)) for one in comparisons]
        self.check()
        course = _Course()
        _run(self._ask_all(questions, self._key(), on_verdict, course))
        who = f"{self.name} at {self._config.base_url}"
        if course.given_up:  # those kept back are asked again, too
            missing = len(course.given_up) + len(course.refused)
            raise EndpointError(
                f"{who}: {missing} of {len(comparisons)} comparisons have no verdict; the last reason: "
                f"{course.given_up[-1]}"
            )
        if course.refused:
            reason = course.refused[-1][1].text.removeprefix(_REFUSED)
            raise AllRefused(f"{who}: refuses all of {len(comparisons)} comparisons: {reason}", course.refused)

    def _key(self) -> str | None:
        variable = self._config.api_key_variable
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()  # of the line break that a file of secrets ends with
        if not key:
            raise InputError(f"{variable}: not set; put the endpoint's API key into this environment variable")
        if not (key.isascii() and key.isprintable()):  # no header could hold it, and the client's error would quote it
            raise InputError(f"{variable}: holds characters that no API key has")
        return key

    async def _ask_all(self, questions: list[str], key: str | None, on_verdict: OnVerdict, course: _Course) -> None:
        import openai

        config = self._config
        # Attempts, pauses and the time-out are ours: the client's own know neither the limits nor the other requests,
        # and two timers that end together would leave the request cancelled instead of too late.
        client = openai.AsyncOpenAI(api_key=key or "none", base_url=config.base_url, max_retries=0, timeout=None)
        headers = None if key else {"Authorization": openai.Omit()}  # the client insists on a key
        waiting = iter(enumerate(questions))
        async with client:
            workers = [
                self._work(client, headers, waiting, _Hider(key), on_verdict, course)
                for _ in range(min(config.concurrency, len(questions)))
            ]
            tasks = [asyncio.ensure_future(worker) for worker in workers]
            try:
                await asyncio.gather(*tasks)
            finally:  # one that failed ends the others, too
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(
        self,
        client: Any,
        headers: Any,
        waiting: Iterator[tuple[int, str]],
        hide: "_Hider",
        on_verdict: OnVerdict,
        course: _Course,
    ) -> None:
        """Take questions until there are none."""
        for index, question in waiting:
            if course.in_a_row >= self._config.give_up_after:
                course.given_up.append(course.given_up[-1])
                continue
            found = await self._ask(client, headers, question)
            if isinstance(found, Reply):
                course.in_a_row, course.answered = 0, True
                course.release(on_verdict)
                preference = read_answer(found.text, ties=self._ties, finished=found.finished)
                on_verdict(
                    index,
                    Verdict(
                        preference=preference,
                        text=hide(found.text),
                        prompt_tokens=found.prompt_tokens,
                        completion_tokens=found.completion_tokens,
                    ),
                )
                continue
            reason = hide(found.reason)[:_LONGEST]
            if found.final:
                raise InputError(f"{self.name} at {self._config.base_url}: {reason}")
            if found.refused:
                course.refused.append((index, Verdict(preference="invalid", text=_REFUSED + reason)))
                if course.answered:
                    course.release(on_verdict)
                elif len(course.refused) >= self._config.give_up_after:
                    raise InputError(
                        f"{self.name} at {self._config.base_url}: refuses all of the first {len(course.refused)} "
                        f"comparisons: {reason}"
                    )
            else:
                course.in_a_row += 1
                course.given_up.append(reason)

    async def _ask(self, client: Any, headers: Any, question: str) -> Reply | Failure:
        """Ask until there is an answer, or no use."""
        config = self._config
        estimate = len(question) / _CHARACTERS_A_TOKEN + config.max_tokens
        draw = random.Random(f"{config.sampling_seed} {question}")
        attempt = 0
        while True:
            await asyncio.sleep(max(self._requests.reserve(1), self._tokens.reserve(estimate)))
            found = await self._request(client, headers, question)
            with self._lock:
                self._counts["requests"] += 1
                if isinstance(found, Reply):
                    self._counts["prompt_tokens"] += found.prompt_tokens
                    self._counts["completion_tokens"] += found.completion_tokens
                else:
                    self._counts["failures"] += 1
            if isinstance(found, Reply):
                if used := found.prompt_tokens + found.completion_tokens:
                    self._tokens.correct(used - estimate)
                return found
            attempt += 1
            if not found.passing or found.final:
                return found
            if attempt == config.max_attempts:
                return Failure(f"attempt {attempt} of {attempt}: {found.reason}")
            pause = back_off(attempt - 1, first=config.first_pause, longest=config.longest_pause, draw=draw)
            if found.retry_after is not None:
                if found.retry_after > config.longest_pause:
                    return Failure(f"it asks for a pause of {found.retry_after:.0f} s: {found.reason}")
                # Where it is too many for the server, the others' next requests would be, too.
                self._requests.pause(found.retry_after)
                pause = found.retry_after + 0.1 * pause
            await asyncio.sleep(pause)

    async def _request(self, client: Any, headers: Any, question: str) -> Reply | Failure:
        """One request: the answer, or why there is none."""
        config = self._config
        messages = [{"role": "system", "content": self._prompts.system}] if self._prompts.system else []
        fields: dict[str, Any] = {config.max_tokens_field: config.max_tokens}
        if config.temperature is not None:
            fields["temperature"] = config.temperature
        if config.sampling_seed is not None:
            fields["seed"] = config.sampling_seed
        try:
            # Of the whole: between two bytes, as the client's are, a server that drips would hold a question for ever.
            async with asyncio.timeout(config.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    model=config.model,
                    messages=[*messages, {"role": "user", "content": question}],
                    extra_headers=headers,
                    **fields,
                )
            return read_reply(raw.text)
        except Exception as error:
            return failure_of(error, config.timeout)


class _Hider:
    """Strikes the key from a text: a server may send back what it was sent. To be called before the text is cut."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; where this thread has a loop already (a notebook), in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
