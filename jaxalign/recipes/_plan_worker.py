"""A process that compiles steps for N devices that are not there: a line of JSON in, a line of JSON out.

    python -m jaxalign.recipes._plan_worker N

How many devices a process sees is settled when JAX starts, hence a process of its own. In: ``{"recipe", "config",
"model": {"name", "fields"}, "reward", "critic", "rater", "row_tokens", "row_targets", "chip", "room"}``.
Out: ``{"step": ..., "measured": ..., "rollout": ... or null}``, null also where the update alone is more than ``room``
bytes, or ``{"refused": message}``.
"""

import dataclasses
import json
import sys
import time
import typing
from pathlib import Path
from types import UnionType
from typing import Any

__all__ = ["decode", "encode", "main"]


def encode(config: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def decode(kind: type, values: dict[str, Any]) -> Any:
    """The dataclass that ``encode`` was given."""
    hints = typing.get_type_hints(kind)
    return kind(**{item.name: _value(hints[item.name], values[item.name]) for item in dataclasses.fields(kind)})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        return _value(next(part for part in typing.get_args(hint) if part is not type(None)), value)
    if origin is tuple:
        return tuple(value)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value)
    return hint(value) if isinstance(hint, type) and issubclass(hint, Path) else value


def main(devices: int) -> None:
    """Answer requests until there are no more."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_compilation_cache", False)  # what the compiler writes down is wanted, not its result
    answers, sys.stdout = sys.stdout, sys.stderr
    kept: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), kept)), file=answers, flush=True)


def _answer(request: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    from jaxalign.errors import InputError
    from jaxalign.recipes._plan_compile import compile_rollout, compile_step
    from jaxalign.recipes._plan_devices import Chip
    from jaxalign.recipes._plan_step import PlannedModel, lower_step
    from jaxalign.recipes.plan import RECIPES

    started = time.monotonic()
    chip = Chip(**request["chip"])
    try:
        config = decode(RECIPES[request["recipe"]], request["config"])
        found = {name: _model(request[name], score=name != "model") for name in ("model", "reward", "critic")}
        assert isinstance(found["model"], PlannedModel)
        step = lower_step(
            config,
            found["model"],
            reward=found["reward"],
            critic=found["critic"],
            rater=request["rater"],
            row_tokens=request["row_tokens"],
            row_targets=request["row_targets"],
            platform=chip.platform,
            device_kind=chip.name,
        )
        lowered = time.monotonic()
        here = chip.platform == "cpu"
        measured = compile_step(step, for_this_machine=here)
        rollout = None
        # Compiling the sampler takes longer than the update, of which it is known here whether it is too large.
        update = sum(step.arguments.values()) + sum(step.resident.values()) + measured.peak + measured.results
        if step.rollout is not None and (request["room"] is None or update <= request["room"]):
            rollout = dataclasses.asdict(compile_rollout(step.rollout, for_this_machine=here, kept=kept))
    except InputError as error:
        return {"refused": str(error)}
    plain = {item.name: getattr(step, item.name) for item in dataclasses.fields(step)}
    del plain["lowered"], plain["rollout"]
    plain["mesh"] = dict(step.mesh.shape)
    seconds = {"lower": lowered - started, "compile": time.monotonic() - lowered}
    return {"step": plain, "measured": dataclasses.asdict(measured), "rollout": rollout, "seconds": seconds}


def _model(request: dict[str, Any] | None, *, score: bool) -> Any:
    from jaxalign.recipes._plan_models import config_of, model_dtype
    from jaxalign.recipes._plan_step import PlannedModel

    if request is None:
        return None
    config = config_of(request["fields"], request["name"])
    return PlannedModel(config.replace(labels=1) if score else config, model_dtype(request["fields"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
