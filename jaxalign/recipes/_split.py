"""A model divided into what trains and what does not, by freezing or by an adapter, and laid out on a mesh."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import models, sharding, training
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._config import TrainConfig
from jaxalign.recipes._objective import Params

__all__ = ["Split", "split_model"]

# Folded into the seed's key to draw the adapter; the steps fold in their numbers.
ADAPTER = 0x4C6F5241


@dataclass(frozen=True)
class Split:
    """What trains, beside what does not; ``models.combine(trainable, base)`` is the model that is trained."""

    config: ModelConfig
    """The model as a loss sees it: its layers in stacks where freezing divides them, with its adapter."""
    trainable: Params
    """As it is before the first update; where it lies does not matter, the state holds copies."""
    base: Params
    """On the mesh, in ``frozen_dtype``."""
    trainable_layout: Any
    base_layout: Any
    dtype: str
    """The type of what trains."""
    frozen_dtype: str | None

    @property
    def start(self) -> Params:
        """What trains as it starts: what the parameters' dtype would round is rounded here too."""
        return _rounded(self.trainable, self.dtype)

    @property
    def reference(self) -> Params:
        """What ``base`` lacks of the model as it starts: nothing where an adapter trains, for it starts as zero."""
        return {} if self.config.lora else self.as_frozen(self.start)

    def as_frozen(self, tree: Params) -> Params:
        """A tree as frozen parameters are held."""
        return tree if self.frozen_dtype is None else training.cast_parameters(tree, self.frozen_dtype)

    @property
    def without_dropout(self) -> ModelConfig:
        """The config that scores: evaluation draws nothing."""
        lora = self.config.lora
        return self.config if lora is None else self.config.replace(lora=replace(lora, dropout=0.0))

    @property
    def without_start(self) -> "Split":
        """The division alone; what trained as it started is let go."""
        return replace(self, trainable={})

    def whole(self, trainable: Params) -> tuple[ModelConfig, Params]:
        """The plain model, its layers in one stack, the adapter merged."""
        if self.config.lora is None:
            params = models.combine(trainable, self.base)
        else:
            adapter = {name: part for name, part in trainable.items() if name != "score"}
            params = models.merge_lora(self.config, self.base, adapter, dtype=self.dtype)
            if "score" in trainable:
                params = {**params, "score": trainable["score"]}
        return models.restack(self.config.replace(lora=None), params, (self.config.layers,))


def split_model(model_config: ModelConfig, params: Params, config: TrainConfig, mesh: Mesh) -> Split:
    """Divide a model as a run's config says: frozen layers and parameters, or an adapter above the frozen layers.

    Raises:
      InputError: more frozen layers than there are, names that match nothing, nothing left that trains.
    """
    if config.frozen_layers > model_config.layers:
        raise InputError(f"--frozen-layers: the model has {model_config.layers} layers, not {config.frozen_layers}")
    if config.lora is None:
        try:
            split_config, trainable, base = models.freeze(
                model_config,
                params,
                config.frozen_layers,
                embeddings=config.frozen_embeddings,
                patterns=config.frozen_parameters,
            )
        except InputError as error:
            raise InputError(str(error).replace("frozen parameters:", "--frozen-parameters:")) from None
        if not jax.tree.leaves(trainable):
            raise InputError("--frozen-parameters: nothing is left that trains")
    else:
        split_config, trainable, base = _adapted(model_config, params, config)
    layout = _layout(split_config, mesh, config.rules)
    base_layout = _like(layout, base)
    if config.frozen_dtype is not None:
        base = training.cast_parameters(base, config.frozen_dtype)
    return Split(
        config=split_config,
        trainable=trainable,
        base=sharding.shard_tree(base, base_layout),
        trainable_layout=_like(layout, trainable),
        base_layout=base_layout,
        dtype=config.parameter_dtype,
        frozen_dtype=config.frozen_dtype,
    )


def _adapted(model_config: ModelConfig, params: Params, config: TrainConfig) -> tuple[ModelConfig, Params, Params]:
    """(config, a new adapter, the whole model); a score head trains beside the adapter, for it is new."""
    layers, rest = config.frozen_layers, model_config.layers - config.frozen_layers
    if not rest:
        raise InputError(f"--frozen-layers: all {layers} layers are frozen; --lora-rank leaves nothing that trains")
    split_config, base = models.restack(model_config, params, (layers, rest) if layers else (rest,))
    split_config = split_config.replace(lora=config.lora)
    key = jax.random.fold_in(jax.random.key(config.seed), ADAPTER)
    if split_config.labels:  # a critic's adapter beside a policy's
        key = jax.random.fold_in(key, split_config.labels)
    try:
        adapter = models.init_lora(split_config, key)
    except InputError as error:
        raise InputError(str(error).replace("LoRA.targets:", "--lora-targets:")) from None
    if not split_config.labels:
        return split_config, adapter, base
    head = {"score": base["score"]}
    return split_config, {**adapter, **head}, {name: part for name, part in base.items() if name != "score"}


def _layout(config: ModelConfig, mesh: Mesh, rules: sharding.Rules) -> Any:
    """Where every leaf lies, of the model and of its adapter."""
    axes = models.logical_axes(config)
    shapes = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    if config.lora is not None:
        axes = models.combine(models.lora_axes(config), axes)
        shapes = models.combine(jax.eval_shape(lambda: models.init_lora(config, jax.random.key(0))), shapes)
    return sharding.tree_shardings(axes, shapes, mesh, rules)


def _rounded(params: Params, dtype: str) -> Params:
    """The leaves that ``dtype`` cannot hold as ``training.cast_parameters`` casts them, the others as they are."""

    def choose(leaf: Any, cast: Any) -> Any:
        return leaf if jnp.promote_types(leaf.dtype, cast.dtype) == cast.dtype else leaf.astype(cast.dtype)

    return jax.tree.map(choose, params, jax.eval_shape(lambda tree: training.cast_parameters(tree, dtype), params))


def _like(whole: Any, part: Any) -> Any:
    """The entries of the nested dict ``whole`` that ``part`` has."""
    if not isinstance(part, dict):
        return whole
    return {name: _like(whole[name], value) for name, value in part.items()}
