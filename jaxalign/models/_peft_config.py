"""PEFT's adapter_config.json: which of its choices are read, written, refused."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._lora import LoRA

FILE = "adapter_config.json"
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
}  # fmt: skip
# Fields about the file, how training began or how PEFT runs, not about what the adapter computes. fan_in_fan_out says
# how the base's weight lies, which the model itself knows; layers_pattern, where the layers' numbers stand.
INERT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "fan_in_fan_out", "layers_pattern", "megatron_core", "eva_config", "runtime_config", "qalora_group_size",
    "ensure_weight_tying",
}  # fmt: skip
# The other starts change the base's weights too (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), so that the adapter belongs to
# another base than the one it names.
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says, as far as it is implemented."""

    lora: LoRA
    """Rank, alpha, dropout; its targets and first layer are not this file's to say."""
    targets: str | Sequence[str] | None
    """Module names by their endings, or one regular expression of whole names."""
    excluded: str | Sequence[str] | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    """Ranks of their own: regular expression of a name's ending -> rank."""
    alphas: dict[str, float] = field(default_factory=dict)
    layers: Sequence[int] | None = None
    """The adapted layers; None = all. Read with a list of targets only, as PEFT does."""

    def rank_and_alpha(self, module: str) -> tuple[int, float]:
        """Those of one module."""

        def own(patterns: dict[str, Any], default: Any) -> Any:
            found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
            return next(found, default)

        return own(self.ranks, self.lora.rank), own(self.alphas, self.lora.alpha)

    def selects(self, module: str, layer: int) -> bool:
        """Whether a module of a layer is said to be adapted."""
        if _matches(self.excluded, module) or not _matches(self.targets, module):
            return False
        return isinstance(self.targets, str) or self.layers is None or layer in self.layers


def _matches(names: str | Sequence[str] | None, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read a folder's adapter_config.json.

    Raises:
        InputError: no such file, not a LoRA, a field that is not implemented or makes no sense; names file and field.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder}: no {FILE}: not an adapter in PEFT's format")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type") if isinstance(fields, dict) else None
        raise InputError(f"{path}: peft_type = {kind!r} is not implemented; LORA is")
    for name, value in sorted(fields.items()):
        if name not in READ and name not in INERT and value not in (None, False, [], {}):
            raise InputError(f"{path}: {name} = {json.dumps(value)} is not implemented")
    if fields.get("bias", "none") != "none":
        raise InputError(f"{path}: bias = {json.dumps(fields['bias'])} is not implemented: only kernels are adapted")
    if fields.get("init_lora_weights", True) not in STARTS:
        raise InputError(
            f"{path}: init_lora_weights = {json.dumps(fields['init_lora_weights'])} is not implemented: such an "
            "adapter belongs to base weights that were changed; convert it with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    layers = fields.get("layers_to_transform")
    try:
        # The rank and alpha of most modules; the tensors' own shapes are checked against them.
        lora = LoRA(
            rank=_number(fields, "r", 8, whole=True),
            alpha=_number(fields, "lora_alpha", 8),
            dropout=_number(fields, "lora_dropout", 0),
            rank_stabilised=bool(fields.get("use_rslora", False)),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return AdapterConfig(
        lora=lora,
        targets=fields.get("target_modules"),
        excluded=fields.get("exclude_modules"),
        ranks=fields.get("rank_pattern") or {},
        alphas=fields.get("alpha_pattern") or {},
        layers=[layers] if isinstance(layers, int) else layers or None,
    )


def _number(fields: dict[str, Any], name: str, default: float, *, whole: bool = False) -> Any:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise InputError(f"field {name!r} must be a {'whole ' if whole else ''}number, is {value!r}")
    return value


def write_adapter_config(
    folder: Path, config: AdapterConfig, *, base_name: str | None, transposed: bool, classifier: bool
) -> None:
    """Write a folder's adapter_config.json.

    Args:
        folder: where to.
        config: what is written.
        base_name: folder or hub id of the model it belongs to.
        transposed: the adapted weights are (in, out), as GPT-2's.
        classifier: the model has a score head, which PEFT's own task for such models would want to find here.
    """

    def plain(number: float) -> float:
        return int(number) if math.isclose(number, round(number), rel_tol=1e-12) else number

    fields = {
        "peft_type": "LORA",
        "task_type": None if classifier else "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.lora.rank,
        "lora_alpha": plain(config.lora.alpha),
        "lora_dropout": config.lora.dropout,
        "use_rslora": config.lora.rank_stabilised,
        "target_modules": config.targets,
        "layers_to_transform": config.layers,
        "rank_pattern": config.ranks,
        "alpha_pattern": {name: plain(alpha) for name, alpha in config.alphas.items()},
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    (folder / FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
