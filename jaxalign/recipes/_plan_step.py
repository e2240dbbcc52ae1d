"""The step that a run would take, lowered for shapes alone: no parameter is made."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import data, models, sharding, training
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes._actor_critic import make_actor_critic
from jaxalign.recipes._config import RunConfig, TrainConfig
from jaxalign.recipes._fit_data import check_fit
from jaxalign.recipes._hindsight import hindsight_objective
from jaxalign.recipes._likelihood import likelihood_objective
from jaxalign.recipes._objective import Objective, Params
from jaxalign.recipes._plan_rows import batch_of, longest_example, rollout_batch, rows_of, window
from jaxalign.recipes._ppo import check_rollout
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._ppo_program import make_ppo_program
from jaxalign.recipes._ppo_update import make_rollout_pass
from jaxalign.recipes._program import Program, make_program
from jaxalign.recipes._reward import reward_objective
from jaxalign.recipes._shared import run_mesh
from jaxalign.recipes._split import split_model
from jaxalign.recipes.dpo import DPOConfig
from jaxalign.recipes.dpo import make_objective as dpo_objective
from jaxalign.recipes.hindsight import HindsightConfig
from jaxalign.recipes.reward_model import RewardModelConfig

__all__ = ["PlannedModel", "PlannedRollout", "PlannedStep", "lower_step"]

Bytes = dict[str, int]
CHIPS_OWN = ("cudnn", "splash")
"""Attention that one kind of chip has."""


@dataclass(frozen=True)
class PlannedModel:
    """A model by its shapes."""

    config: ModelConfig
    dtype: str
    """Of the files."""

    def shapes(self) -> Params:
        """The tree of ``jax.ShapeDtypeStruct``."""
        config = self.config.replace(compute_dtype="float32")
        return jax.eval_shape(lambda: models.init(config, jax.random.key(0), dtype=self.dtype))


@dataclass(frozen=True)
class PlannedRollout:
    """What PPO runs before an update, for shapes."""

    config: ModelConfig
    """The policy."""
    params: Params
    """It whole, as ``jax.ShapeDtypeStruct`` with their shardings."""
    mesh: Mesh
    settings: dict[str, int]
    """Of ``sampling.sampler_memory``."""
    rating: Any
    """The lowered pass over what was sampled."""

    @property
    def name(self) -> str:
        """The same for the same sampler: of recomputation, which is of gradients, it knows nothing."""
        leaves, structure = jax.tree.flatten(self.params)
        shapes = [(leaf.shape, str(leaf.dtype), str(leaf.sharding.spec)) for leaf in leaves]
        return repr((self.config.replace(remat="none"), structure, shapes, dict(self.mesh.shape), self.settings))


@dataclass(frozen=True)
class PlannedStep:
    """A lowered step and what one device holds for it."""

    lowered: Any
    mesh: Mesh
    arguments: Bytes
    """Bytes a device of what the step is given, by category."""
    resident: Bytes
    """Bytes a device of what lies beside the step and is not given to it (PPO: reference and reward; reward models: the
    best so far)."""
    gradients: int
    """Bytes a device of one gradient."""
    trainable: int
    """Numbers that train, in all."""
    parameters: int
    """Numbers of the model that trains, in all."""
    rows: int
    row_tokens: int
    """Tokens of a row (of all its answers' rows in the "two_rows" layout)."""
    row_targets: int
    attends: tuple[tuple[int, bool], ...]
    """Rows that attend, each to itself: (tokens, whether branches or a mask of their own hide some of them)."""
    unknown_trips: int
    """How often a loop runs whose end the data decide, at most."""
    own_kernel: bool = False
    """Whether the chip has a kernel of its own for this attention, which is planned as XLA's."""
    rollout: PlannedRollout | None = None
    """Of PPO."""


def lower_step(
    config: TrainConfig,
    model: PlannedModel,
    *,
    reward: PlannedModel | None = None,
    critic: PlannedModel | None = None,
    rater: str | None = None,
    row_tokens: int | None = None,
    row_targets: int | None = None,
    platform: str = "cpu",
    device_kind: str = "cpu",
) -> PlannedStep:
    """Lower the train step of a run over the devices there are, by the code that makes it for the run.

    Args:
      config: an ``SFTConfig``, ``DPOConfig``, ``RewardModelConfig``, ``HindsightConfig`` or ``PPOConfig``.
      model: the model that trains.
      reward, critic: PPO's, where they are models of their own.
      rater: folder or hub id of a classifier that rates PPO's texts.
      row_tokens, row_targets: of a row; None = the longest that the config's limits allow.
      platform: what the run would be on, cpu, gpu or tpu.
      device_kind: the chip's name.

    Raises:
      InputError: what the run would refuse.
    """
    mesh = run_mesh(config)
    # A kernel of one chip cannot be compiled here; XLA's own attention holds more, never less.
    attention = "xla" if config.attention in CHIPS_OWN else config.attention
    here = model.config.replace(compute_dtype=config.dtype, remat=config.remat, attention=attention)
    planned = replace(model, config=here)
    if isinstance(config, PPOFitConfig):
        as_xla = replace(config, attention=attention)
        step = _lower_ppo(as_xla, planned, mesh, reward, critic, rater, row_tokens, row_targets)
    else:
        assert isinstance(config, RunConfig)
        step = _lower_fit(config, planned, mesh, row_tokens, row_targets)
    if sharding.length_shards(mesh) > 1:
        return step
    kernels = {
        models.causal_kernel(
            one.config.replace(attention=config.attention), jnp.dtype(config.dtype), length, platform=platform,
            device_kind=device_kind, packed=True, masked=masked,
        )
        for one in (model, reward, critic) if one is not None for length, masked in step.attends
    }  # fmt: skip
    return replace(step, own_kernel=not kernels.isdisjoint(CHIPS_OWN))


def _lower_fit(
    config: RunConfig, model: PlannedModel, mesh: Mesh, row_tokens: int | None, row_targets: int | None
) -> PlannedStep:
    example = longest_example(config, model.config, row_tokens, row_targets)
    check_fit(model.config, [example])
    pieces = sharding.length_shards(mesh)
    batch = rows_of(batch_of(example, config, pieces), config.batch_size)
    forgets = isinstance(config, HindsightConfig) and config.forget_max_ratio > 0
    attends = [(batch.tokens.shape[-1], batch.branched or forgets)]
    if isinstance(config, HindsightConfig) and config.pretraining_dataset is not None:
        document = window(config.pretraining_length or config.max_length)
        length = document.count("token")
        text = data.make_batches([document], batch_size=1, pack=True, max_length=length, pieces=pieces)[0]
        batch = batch.replace(pretraining=rows_of(text, config.pretraining_batch_size))
        attends.append((text.tokens.shape[-1], False))
    held: dict[str, Any] = {}

    def build(params: Params) -> Any:
        model_config = model.config
        if isinstance(config, RewardModelConfig) and not model_config.labels:
            model_config, params = models.add_score_head(model_config, params, jax.random.key(0))
        split = split_model(model_config, params, config, mesh)
        objective = _objective(split.config, config)
        own = split.reference
        reads = objective.needs_reference and "reference_log_probs" not in batch.extras and bool(own)
        program = make_program(
            objective, split, config, mesh, own=own, reads_reference=reads, total_steps=config.max_steps or 1000
        )
        held.update(program=program, layout=split.trainable_layout)
        return split.trainable, {"base": split.base, "reference": own if reads else {}}, program.extra

    trainable, frozen, extra = jax.eval_shape(build, model.shapes())
    program: Program = held["program"]
    state = training.state_shapes(trainable, program.optimizer, dtype=config.parameter_dtype, extra=extra)
    keeps_best = isinstance(config, RewardModelConfig) and config.eval_dataset is not None
    frozen_bytes = {name: _bytes(frozen[name], program.frozen_layout[name]) for name in frozen}
    return PlannedStep(
        lowered=program.step.lower(state, frozen, batch),
        mesh=mesh,
        arguments=_of_state(state, program.layout)
        | {"reference": frozen_bytes["reference"] + _moving(state, program.layout)}
        | {"frozen": frozen_bytes["base"], "batch": _bytes(batch, training.batch_shardings(batch, mesh))},
        resident={"best": _bytes(state.params, program.layout.params)} if keeps_best else {},
        gradients=_gradients(state.params, held["layout"], config.accumulation),
        trainable=_numbers(trainable),
        parameters=_numbers(model.shapes()),
        rows=config.batch_size,
        row_tokens=int(np.prod(batch.tokens.shape[1:])),
        row_targets=int(np.prod(batch.targets.shape[1:])),
        attends=tuple(attends),
        unknown_trips=1,
    )


def _lower_ppo(
    config: PPOFitConfig,
    model: PlannedModel,
    mesh: Mesh,
    reward: PlannedModel | None,
    critic: PlannedModel | None,
    rater: str | None,
    row_tokens: int | None,
    row_targets: int | None,
) -> PlannedStep:
    check_rollout(config, mesh)
    response = row_targets or config.max_new_tokens
    prompt = row_tokens - response if row_tokens else getattr(config, "max_prompt_length", 512)
    batch = rows_of(rollout_batch(prompt, response, sharding.length_shards(mesh)), config.batch_size)
    held: dict[str, Any] = {}

    def build(params: Params, reward_params: Params, critic_params: Params) -> Any:
        scored = None if reward is None else RewardModel(reward.config, reward_params)
        valued = scored if critic is None else RewardModel(critic.config, critic_params)
        models_, trainable, layout, frozen = make_actor_critic(
            model.config, params, config, mesh, critic=valued, reward=scored, reference=None
        )
        program = make_ppo_program(models_, trainable, layout, config, mesh, config.max_steps or 1000)
        held.update(program=program, layout=layout, models=models_)
        policys = set(map(id, jax.tree.leaves(frozen["base"])))
        held["shared"] = [id(leaf) in policys for leaf in jax.tree.leaves(frozen["value_base"])]
        return trainable, frozen, program.extra

    shapes = [{} if one is None else one.shapes() for one in (reward, critic)]
    trainable, frozen, extra = jax.eval_shape(build, model.shapes(), *shapes)
    program: Program = held["program"]
    state = training.state_shapes(trainable, program.optimizer, dtype=config.parameter_dtype, extra=extra)
    given = {name: frozen[name] for name in program.frozen_layout}
    lowered = program.step.lower(state, given, batch)
    policy = held["models"].policy
    frozen_bytes = sum(_bytes(given[name], program.frozen_layout[name]) for name in given)
    bases = (given["value_base"], program.frozen_layout["value_base"])
    for leaf, place, shared in zip(*map(jax.tree.leaves, bases), held["shared"], strict=True):
        frozen_bytes -= _bytes(leaf, place) if shared else 0  # the critic's and the policy's, held once
    # What a rollout reads beside what an update does.
    layout = {**program.frozen_layout, "reference": policy.trainable_layout if frozen["reference"] else {}}
    beside = {"reference": _bytes(frozen["reference"], layout["reference"])}
    if reward is not None:
        axes = models.logical_axes(reward.config)
        layout["reward"] = sharding.tree_shardings(axes, frozen["reward"], mesh, config.rules)
        layout["reward_moments"] = program.frozen_layout["value_moments"]
        beside["reward model"] = _bytes(frozen["reward"], layout["reward"])
    own = _placed(state.params, program.layout.params)
    there = _placed(frozen, {name: layout[name] for name in frozen})
    rollout = PlannedRollout(
        config=policy.config,
        params=models.combine(own["policy"], there["base"]),
        mesh=mesh,
        settings={
            "responses": config.batch_size, "prompt_length": prompt, "max_new_tokens": response,
            "samples_per_prompt": config.samples_per_prompt, "batch_size": config.sampling_batch,
        },
        rating=make_rollout_pass(held["models"], config, mesh).lower(
            own, there, _placed(batch, sharding.batch_sharding(mesh))
        ),
    )  # fmt: skip
    if rater is not None:  # whole, in float32, on one device: the fullest
        beside["reward model"] = 4 * _rater_size(rater)
    return PlannedStep(
        lowered=lowered,
        mesh=mesh,
        arguments=_of_state(state, program.layout)
        | {"reference": 0, "frozen": frozen_bytes}
        | {"batch": _bytes(batch, training.batch_shardings(batch, mesh))},
        resident=beside,
        gradients=_gradients(state.params, held["layout"], config.accumulation),
        trainable=_numbers(trainable),
        parameters=_numbers(model.shapes()),
        rows=config.batch_size,
        row_tokens=batch.tokens.shape[1],
        row_targets=batch.targets.shape[1],
        attends=((batch.tokens.shape[-1], False),),
        unknown_trips=config.ppo_epochs * config.minibatches,
        rollout=rollout,
    )


def _rater_size(folder: str) -> int:
    try:
        return models.classifier_size(folder)
    except InputError as error:
        raise InputError(f"--reward: {error}") from error


def _objective(model_config: ModelConfig, config: RunConfig) -> Objective:
    if isinstance(config, DPOConfig):
        return dpo_objective(model_config, config)
    if isinstance(config, RewardModelConfig):
        return reward_objective(model_config, config)
    if isinstance(config, HindsightConfig):
        return hindsight_objective(model_config, config)
    return likelihood_objective(model_config)


def _of_state(state: training.TrainState, layout: training.TrainState) -> Bytes:
    return {
        "parameters": _bytes(state.params, layout.params),
        "optimizer": _bytes(state.optimizer_state, layout.optimizer_state),
        "counters": sum(_bytes(getattr(state, name), getattr(layout, name)) for name in ("step", "key"))
        + sum(_bytes(state.extra[name], layout.extra[name]) for name in state.extra if name != "reference"),
    }


def _moving(state: training.TrainState, layout: training.TrainState) -> int:
    """A reference that moves is in the state."""
    return _bytes(state.extra["reference"], layout.extra["reference"]) if "reference" in state.extra else 0


def _gradients(params: Params, layout: Any, accumulation: int) -> int:
    """Of one gradient, which micro-batches add up in at least float32."""
    if accumulation > 1:
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params
        )
    return _bytes(params, layout)


def _placed(tree: Any, layout: Any) -> Any:
    """Shapes with their shardings; ``layout`` is a tree like theirs, or one for all."""

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(layout, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: place(leaf, layout), tree)
    return jax.tree.map(place, tree, layout)


def _bytes(tree: Any, layout: Any) -> int:
    """Bytes that one device holds of a tree."""
    leaves = jax.tree.leaves(tree)
    places = jax.tree.leaves(layout)
    if len(places) == 1 and len(leaves) != 1:
        places = places * len(leaves)
    total = 0
    for leaf, place in zip(leaves, places, strict=True):
        total += int(np.prod(place.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
    return total


def _numbers(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))
