"""``jaxalign convert``: a model read, checked and written anew: another dtype, other shards, an adapter merged."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError

__all__ = ["ConvertConfig", "run"]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Read a model, check it, write it anew."""

    model: str
    """Folder in Hugging Face format, or a hub id."""
    output_dir: Path
    """Where the converted model goes; an older model there is replaced."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter in PEFT's format, merged into the model."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None takes the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights written; None keeps what they have."""
    max_shard_size: str = "5GB"
    """Most bytes of a weights file, such as 500MB or 4GiB; a larger model is written as several files."""


def run(config: ConvertConfig) -> None:
    """Read, write, say what was done. Raises ``InputError`` for a model that cannot be read or a folder to keep."""
    limit = _bytes(config.max_shard_size)
    _check_output(config)

    import jax

    from jaxalign import models

    with jax.default_device(_host()):
        own = config.dtype if config.adapter is None else None  # an adapter is added before anything is rounded
        model_config, params = models.load_pretrained(config.model, dtype=own, revision=config.revision)
        if config.adapter is not None:
            adapted, lora = models.load_adapter(config.adapter, model_config)
            # The update is small beside its kernel: in bfloat16 most of it would be rounded away.
            params = models.merge_lora(adapted, params, lora, dtype="float32")
            if config.dtype is not None:
                params = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
        tokenizer = models.TokenizerFiles(config.model, revision=config.revision)
        models.save_pretrained(config.output_dir, model_config, params, tokenizer, max_shard_bytes=limit)
    if not models.write_card(config.output_dir, _card(config, model_config.labels)):
        sys.stderr.write(f"{config.output_dir / 'README.md'} is not of jaxalign's making and stays as it is\n")
    leaves = jax.tree.leaves(params)
    labels = model_config.labels
    head = f", {labels} label{'s' * (labels > 1)}" if labels else ""
    merged = f" with {config.adapter}" if config.adapter is not None else ""
    count = f"{sum(leaf.size for leaf in leaves):,} parameters"
    dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    files = sorted(path for path in config.output_dir.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    named = files[0].name if len(files) == 1 else f"{len(files)} files"
    others = ", ".join(tokenizer.names) or "none"
    sys.stdout.write(
        f"{config.model}{merged}: {model_config.family}{head}, {count}, {dtypes}\n"
        f"{config.output_dir}: {named} ({size / 1e6:,.1f} MB), config.json, generation_config.json; "
        f"tokenizer: {others}\n"
    )


def _card(config: ConvertConfig, labels: int) -> str:
    """The card of a model that is another one written anew."""
    from jaxalign import models

    base, name = models.base_of(config.model), models.code(models.public_name(config.model))
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if labels else "text-generation",
        "base_model": base,
        "tags": ["jaxalign"],
    }
    link = f" (base model: [{base}](https://huggingface.co/{base}))" if base else ""
    merged = f", with the adapter {models.code(models.public_name(config.adapter))} merged in" if config.adapter else ""
    dtype = f", as {config.dtype}" if config.dtype else ""
    auto = "AutoModelForSequenceClassification" if labels else "AutoModelForCausalLM"
    folder = repr(config.output_dir.resolve().name)
    template = "brings" if models.has_chat_template(config.output_dir) else "brings no"
    body = [
        f"# {name}, converted",
        f"These are the weights of {name}{link}{merged}{dtype}, written by `jaxalign convert`; nothing was trained. "
        "What is known of the model, its licence and its limitations is in that model's own card.",
        f"The tokenizer {template} chat template.",
        f"```python\nfrom transformers import {auto}\n\nmodel = {auto}.from_pretrained({folder})\n```",
        f"```python\nfrom jaxalign import models\n\nconfig, params = models.load_pretrained({folder})\n```",
    ]
    return models.card_text(header, "\n\n".join(body))


def _check_output(config: ConvertConfig) -> None:
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir: {folder} is a file, not a folder")
    if not folder.is_dir():
        return
    if Path(config.model).is_dir() and Path(config.model).resolve() == folder.resolve():
        raise InputError(f"--output-dir: {folder} is the model itself; give another folder")
    if any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise InputError(f"--output-dir: {folder} is not empty and holds no model: nothing there is overwritten")


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size.strip())
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise InputError(f"--max-shard-size: {size!r} is not a size such as 500MB or 5GB")
    return int(float(found[1]) * unit)


def _host() -> Any:
    """The host's own device: a model need not fit an accelerator to be converted. None where JAX has no such device."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
