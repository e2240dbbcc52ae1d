"""Rollouts: prompts in a fixed order, responses by the current policy, their rewards."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import data, models, sampling, sharding
from jaxalign.data import Batch, Prompt
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._shared import on_first_process
from jaxalign.sampling import Samples, TextReward
from jaxalign.training import TrainState

__all__ = ["Rollout", "RolloutSource", "Texts"]

# Folded into the seed's key to sample; the rollouts fold in their numbers.
ROLLOUT = 0x524F_4C4C

RolloutPass = Callable[[Any, dict[str, Any], Batch], dict[str, jax.Array]]
# What a rollout begun ahead is saved as: the prompts and finished flags follow from its number and these.
SAVED = ("tokens", "mask", "log_probs", "finished")


@dataclasses.dataclass(frozen=True)
class Texts:
    """How ids become the texts that a text reward reads."""

    decode: Callable[[list[int]], str]
    stop_tokens: Sequence[int]
    """Ids that end a response: the EOS. The text of a finished response is without it."""
    reward: TextReward | None
    """``f(prompts, completions) -> scores``, or None where the reward is a model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """A rollout on its way: the device computes what it is worth, a thread may be rating its texts."""

    number: int
    staleness: int
    """Updates between the policy that sampled it and the one that it trains."""
    prompts: list[int]
    """Index of every row's prompt."""
    samples: Samples
    batch: Batch
    """On the mesh, with the extras of ``make_rollout_pass``."""
    seconds: float
    scores: concurrent.futures.Future[np.ndarray] | None


class RolloutSource:
    """Makes rollout k of a state: a function of (state, seed, k), so that a run that continues repeats nothing.

    With ``overlap_rewards`` rollout k + 1 is sampled, by the same parameters as rollout k was trained from, while a
    thread rates the texts of rollout k; ``to_save`` puts such a rollout into what a checkpoint holds.

    On several processes all of them sample together and know all of the texts; the first has them rated.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        frozen: dict[str, Any],
        prompts: Sequence[Prompt],
        texts: Texts,
        rollout_pass: RolloutPass,
        config: PPOFitConfig,
        mesh: Mesh,
        *,
        pad_token: int,
        last: int | None = None,
    ) -> None:
        self._model_config, self._frozen, self._prompts, self._texts = model_config, frozen, prompts, texts
        self._pass, self._config, self._mesh = rollout_pass, config, mesh
        self._pad_token, self._last = pad_token, last
        lengths = np.asarray([len(prompt.tokens) for prompt in prompts], np.int64)
        self._width = int(lengths.max())
        room = model_config.max_positions - config.max_new_tokens
        if self._width > room:
            raise InputError(
                f"--max-prompt-length: prompt {int(lengths.argmax())} has {self._width} tokens; with --max-new-tokens "
                f"{config.max_new_tokens} the model's {model_config.max_positions} positions leave room for {room}"
            )
        if len(prompts) < config.prompts_per_rollout:
            raise InputError(
                f"--batch-size: a rollout takes {config.prompts_per_rollout} prompts, but there are {len(prompts)}"
            )
        nothing = np.zeros_like(lengths)
        sizes = data.Sizes(lengths, nothing, nothing, nothing + 1, np.arange(len(lengths)))
        self._plan = data.BatchPlan(sizes, batch_size=config.prompts_per_rollout, seed=config.seed)
        self._key = jax.random.fold_in(jax.random.key(config.seed), ROLLOUT)
        self._ahead: Rollout | None = None
        self._rater = concurrent.futures.ThreadPoolExecutor(1) if texts.reward and config.overlap_rewards else None

    def __call__(self, state: TrainState, number: int) -> tuple[Batch, dict[str, float]]:
        """Rollout ``number``, ready to be trained on, and what the host knows of it.

        Raises:
            InputError: a reward that raised or is no number; the message names the prompt.
        """
        rollout = self._ahead if self._ahead and self._ahead.number == number else self._begin(state, number)
        self._ahead = None
        ahead = self._begin(state, number + 1, staleness=1) if self._rater and number != self._last else None
        started = time.monotonic()
        batch = rollout.batch
        if self._texts.reward is not None:
            try:
                scores = on_first_process(functools.partial(self._scores, rollout), len(rollout.prompts))
            except BaseException as error:
                self._ahead = rollout  # to be saved: its policy is gone
                if isinstance(error, InputError):
                    raise InputError(f"update {number + 1}: {error}") from error
                raise
            extras = {**batch.extras, "scores": self._put(scores.astype(np.float32))}
            batch = batch.replace(extras=extras)
        self._ahead = ahead
        return batch, {
            "episode": (number + 1) * self._config.batch_size,
            "rollout/seconds": rollout.seconds,
            "rollout/reward_seconds": time.monotonic() - started,
            "rollout/staleness": rollout.staleness,
        }

    def to_save(self, state: TrainState) -> TrainState:
        """The state with the rollout that is under way, whose policy is no longer there."""
        if self._ahead is None:
            ahead = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.saved_shapes())
        else:
            samples = {name: jnp.asarray(getattr(self._ahead.samples, name)) for name in SAVED}
            computed = {name: self._ahead.batch.extras[name] for name in self._computed()}
            ahead = {"number": jnp.int32(self._ahead.number), **samples, **computed}
        ahead = sharding.shard_tree(ahead, sharding.replicated(self._mesh))
        return dataclasses.replace(state, extra={**state.extra, "ahead": ahead})

    def saved_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of what ``to_save`` adds; its number is 0 where no rollout is under way (the first is never begun ahead)."""
        rows, width = self._config.batch_size, self._config.max_new_tokens
        dtypes = {"tokens": jnp.int32, "mask": jnp.bool_, "log_probs": jnp.float32}
        shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct((rows, width), dtypes.get(name, jnp.float32))
            for name in ("tokens", "mask", "log_probs", *self._computed())
        }
        return shapes | {
            "number": jax.ShapeDtypeStruct((), jnp.int32),
            "finished": jax.ShapeDtypeStruct((rows,), jnp.bool_),
        }

    def restore(self, ahead: dict[str, jax.Array]) -> None:
        """Take up the rollout that ``to_save`` put aside; its texts are rated again."""
        number = int(ahead["number"])
        if number:
            samples = Samples(**{name: np.asarray(ahead[name]) for name in SAVED})
            rows = self._rows(number)
            batch = self._batch(rows, samples)
            computed = self._put({name: np.asarray(ahead[name]) for name in self._computed()})
            batch = batch.replace(extras={**batch.extras, **computed})
            self._ahead = Rollout(number, 1, rows, samples, batch, 0.0, self._submit(rows, samples))

    def close(self) -> None:
        """Wait for no one: a reward that is being computed is of no more use."""
        if self._rater:
            self._rater.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _computed() -> tuple[str, ...]:
        return ("old_log_probs", "old_values", "reference_log_probs", "entropy")

    def _begin(self, state: TrainState, number: int, staleness: int = 0) -> Rollout:
        started = time.monotonic()
        config = self._config
        rows = self._rows(number)
        whole = models.combine(state.params["policy"], self._frozen["base"])
        with jax.set_mesh(self._mesh):  # every device decodes its share of the rows
            samples = sampling.generate(
                self._model_config,
                whole,
                [self._prompts[index].tokens for index in rows[:: config.samples_per_prompt]],
                jax.random.fold_in(self._key, number),
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                stop_tokens=self._texts.stop_tokens,
                samples_per_prompt=config.samples_per_prompt,
                batch_size=config.sampling_batch,
                pad_token=self._pad_token,
            )
        seconds = time.monotonic() - started
        batch = self._batch(rows, samples)
        # Dispatched, not waited for: the device computes while the host rates.
        computed = sharding.settle(self._pass(state.params, self._frozen, batch))
        batch = batch.replace(extras={**batch.extras, **computed})
        return Rollout(number, staleness, rows, samples, batch, seconds, self._submit(rows, samples))

    def _rows(self, number: int) -> list[int]:
        chosen = [index for row in self._plan.rows(number) for index in row]
        return [index for index in chosen for _ in range(self._config.samples_per_prompt)]

    def _batch(self, rows: list[int], samples: Samples) -> Batch:
        batch = data.response_batch(
            [self._prompts[index].tokens for index in rows],
            np.asarray(samples.tokens),
            np.asarray(samples.mask),
            prompt_width=self._width,
            record_ids=rows,
            pad_token=self._pad_token,
            pieces=sharding.length_shards(self._mesh),
            finished=np.asarray(samples.finished),
            sampler_log_probs=np.asarray(samples.log_probs),
        )
        return self._put(batch)

    def _put(self, rows: Any) -> Any:
        """Lay out rows that every process has all of."""
        return sharding.shard_tree(rows, sharding.batch_sharding(self._mesh))

    def _submit(self, rows: list[int], samples: Samples) -> concurrent.futures.Future[np.ndarray] | None:
        if self._rater is None or jax.process_index() != 0:
            return None
        return self._rater.submit(self._rate, rows, samples)

    def _scores(self, rollout: Rollout) -> np.ndarray:
        return rollout.scores.result() if rollout.scores else self._rate(rollout.prompts, rollout.samples)

    def _rate(self, rows: list[int], samples: Samples) -> np.ndarray:
        assert self._texts.reward is not None
        stop = set(self._texts.stop_tokens)
        completions = [self._texts.decode(ids[:-1] if ids and ids[-1] in stop else ids) for ids in samples.responses()]
        prompts = [self._prompts[index] for index in rows]
        return sampling.score_texts(
            self._texts.reward,
            [prompt.content for prompt in prompts],
            completions,
            finished=np.asarray(samples.finished).tolist(),
            names=[prompt.place or f"prompt {index}" for prompt, index in zip(prompts, rows, strict=True)],
        )
