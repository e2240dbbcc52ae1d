"""The sampler's host half: which waiting response goes to which row, and when."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.models import Cache, ModelConfig
from jaxalign.sampling import _engine as engine
from jaxalign.sampling._engine import Controls, Fresh, Params, Plan, Rows, Staged
from jaxalign.sampling._requests import bucket
from jaxalign.sampling._samples import Samples
from jaxalign.sharding import fetch

# Rows are refilled once this share of them is free: each refill waits for the device and rewrites prompt columns.
REFILL_SHARE = 8
# Decoding steps between two looks for stop strings; a row that met one decodes that many in vain at most.
STEPS_BETWEEN_LOOKS = 8
# Tokens decoded before those that a stop string may stand in: the first may be a part of a character or of a word.
SEAM = 8


@dataclass(frozen=True)
class StopStrings:
    """Finds where a response ends, as text."""

    strings: Sequence[str]
    decode: Callable[[Sequence[int]], str]

    def end(self, tokens: Sequence[int], known: int) -> int | None:
        """Tokens up to the one that completes a string; none is complete within the first ``known`` of them."""
        # A string that ends in a new token begins at most as many tokens before as it has bytes: only there it is
        # looked for, and what is found is looked at in the whole text, which may read otherwise at a seam.
        bytes_of_longest = max(len(string.encode()) for string in self.strings)
        if not self._within(tokens[max(0, known - bytes_of_longest - SEAM) :]) or not self._within(tokens):
            return None
        return next(count for count in range(known + 1, len(tokens) + 1) if self._within(tokens[:count]))

    def _within(self, tokens: Sequence[int]) -> bool:
        text = self.decode(tokens)
        return any(string in text for string in self.strings)


@dataclass(frozen=True)
class Work:
    """P prompts with k responses each: response i is sample i mod k of prompt i // k."""

    prompts: Sequence[np.ndarray]
    """Their own tokens, without the common prefix."""
    samples_per_prompt: int
    limits: np.ndarray
    """int ``[P]``, tokens a response may have."""
    seeds: np.ndarray
    """uint32 ``[P]``."""

    @property
    def responses(self) -> int:
        """P k."""
        return len(self.prompts) * self.samples_per_prompt


class Schedule:
    """Runs work on R rows.

    Prompts are taken in order of length: those staged together are padded little, and as the work goes on the rows'
    caches only ever grow. Prompts are computed U at a time, as many as fill all rows, and then taken by rows as these
    come free: neither waits for the other, and all samples of a prompt share its computation.
    """

    def __init__(
        self, config: ModelConfig, plan: Plan, params: Params, prefix: Cache, controls: Controls, work: Work, rows: int
    ) -> None:
        self._config, self._plan, self._params, self._prefix, self._controls = config, plan, params, prefix, controls
        self._work = work
        self._order = np.argsort([len(prompt) for prompt in work.prompts], kind="stable")
        self._staged: Staged | None = None
        self._rows: Rows | None = None
        # Places in the order of responses: the next one to start, and those whose prompts are staged.
        self._next, self._staged_from, self._staged_to = 0, 0, 0
        # Of each row: its response (-1 = none), the step of its first token, tokens known to hold no stop string.
        self._response = np.full(rows, -1)
        self._first_step, self._looked = np.zeros(rows, int), np.zeros(rows, int)
        self._step = 0

    def run(
        self, out: Samples, *, refill: bool, stop: StopStrings | None, on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Decode everything into ``out``."""
        rows, total, done = len(self._response), self._work.responses, 0
        most = STEPS_BETWEEN_LOOKS if stop is not None else self._plan.steps
        while done < total:
            if refill or (self._response < 0).all():
                self._fill()
            waiting = total - self._next if refill else 0
            wanted = min(waiting, max(1, rows // REFILL_SHARE)) if waiting else rows
            self._rows = engine.decode(
                self._config, self._plan, self._prefix.columns, self._params, self._rows, self._controls,
                self._response < 0, np.int32(wanted), np.int32(most),
            )  # fmt: skip
            ended = self._collect(out, stop)
            done += ended
            if ended and on_progress is not None:
                on_progress(done, total)

    def _fill(self) -> None:
        """Give free rows the responses that wait."""
        free = np.flatnonzero(self._response < 0)
        while free.size and self._next < self._work.responses:
            if self._next == self._staged_to:
                self._stage()
            assert self._staged is not None
            assert self._rows is not None
            count = min(free.size, self._staged_to - self._next)
            taking, free = free[:count], free[count:]
            places = np.arange(self._next, self._next + count)
            samples = self._work.samples_per_prompt
            prompts = self._order[places // samples]
            fresh = Fresh(*(np.zeros(len(self._response), kind) for kind in ("i4", "i4", "i4", "u4", "i4")))
            fresh.source[:] = -1
            fresh.source[taking] = places // samples - self._staged_from // samples
            fresh.lengths[taking] = [len(self._work.prompts[prompt]) for prompt in prompts]
            fresh.limits[taking] = self._work.limits[prompts]
            fresh.seeds[taking] = self._work.seeds[prompts]
            fresh.samples[taking] = places % samples
            self._rows = engine.refill(self._rows, self._staged, fresh)
            self._response[taking] = prompts * samples + places % samples
            self._first_step[taking], self._looked[taking] = self._step, 0
            self._next += count

    def _stage(self) -> None:
        """Compute the next prompts, as many as fill all rows; the last ones are filled up to the same number."""
        rows, samples = len(self._response), self._work.samples_per_prompt
        first, count = self._next // samples, -(-rows // samples)
        chosen = self._order[first : first + count]
        width = bucket(max(len(self._work.prompts[prompt]) for prompt in chosen))
        tokens, lengths = np.zeros((count, width), np.int32), np.ones(count, np.int32)
        for row, prompt in enumerate(chosen):
            lengths[row] = len(self._work.prompts[prompt])
            tokens[row, : lengths[row]] = self._work.prompts[prompt]
        self._staged = None  # spent: not held beside the next
        self._staged = engine.stage(self._config, self._params, self._prefix, tokens, lengths)
        self._staged_from, self._staged_to = self._next, self._next + len(chosen) * samples
        if self._rows is None:
            self._rows = engine.empty(self._plan, self._prefix, self._staged, rows)
        missing = width - (self._rows.cache.columns - self._prefix.columns - self._plan.ring)
        if missing:
            self._rows = engine.widen(self._rows, missing)

    def _collect(self, out: Samples, stop: StopStrings | None) -> int:
        """Write the responses that have ended into ``out`` and free their rows; returns how many."""
        assert self._rows is not None
        state = self._rows
        step, emitted, over, stopped, all_tokens, log_probs = fetch(
            (state.step, state.emitted, state.done, state.finished, state.tokens, state.log_probs)
        )
        self._step, ended = int(step), 0
        for row in np.flatnonzero(self._response >= 0):
            length, done, finished = int(emitted[row]), bool(over[row]), bool(stopped[row])
            slots = (self._first_step[row] + np.arange(length)) % self._plan.steps
            tokens = all_tokens[slots, row]
            if stop is not None:
                text = tokens[:-1] if finished else tokens  # a stop token is not text
                end = stop.end(text.tolist(), int(self._looked[row]))
                if end is not None:
                    length, done, finished = end, True, True
                self._looked[row] = length
            if done:
                response = self._response[row]
                out.tokens[response, :length] = tokens[:length]
                out.log_probs[response, :length] = log_probs[slots[:length], row]
                out.mask[response, :length] = True
                out.finished[response] = finished
                self._response[row] = -1
                ended += 1
        return ended
