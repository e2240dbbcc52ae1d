"""What is no model folder that can be read: one sentence each, saying what to do."""

import contextlib
import json
from pathlib import Path

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def no_weights(folder: Path) -> str:
    """Why there is nothing to read, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return adapter_not_model(folder)
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        return pickled(f"{folder / pickles[0]}", str(folder), folder)
    if found := sorted(path.name for path in folder.glob("*.gguf")):
        return gguf(str(folder / found[0]))
    if found := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"{folder}: holds {found[0]} but no model.safetensors.index.json, which says what is in which file"
    return f"{folder}: no model.safetensors and no model.safetensors.index.json: this folder holds no model weights"


def pickled(what: str, model: str, folder: Path) -> str:
    """The sentence that refuses pickled weights; ``model`` is what transformers opens, ``folder`` has its config."""
    kind = "AutoModelForCausalLM"
    with contextlib.suppress(ValueError, OSError, AttributeError, TypeError, IndexError, KeyError):
        named = json.loads((folder / "config.json").read_text())["architectures"][0]
        kind = named if named.isidentifier() else kind
    return (
        f"{what}: pickled weights can run code and are not read; convert them once, where torch is installed and the "
        'source is trusted: python -c "import transformers; '
        f"transformers.{kind}.from_pretrained('{model}').save_pretrained('NEW_FOLDER')\""
    )


def gguf(what: str) -> str:
    """The sentence that refuses llama.cpp's files."""
    return f"{what}: GGUF files (llama.cpp's, mostly quantised) are not read; use the safetensors folder they came from"


def adapter_not_model(folder: Path) -> str:
    """The sentence that refuses a LoRA adapter where a model is asked for."""
    base = "BASE"
    with contextlib.suppress(ValueError, OSError, AttributeError):
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path") or base
    return (
        f"{folder}: an adapter, not a model: give its base model as --model and this folder as --adapter, or merge the "
        f"two once: jaxalign convert --model {base} --adapter {folder} --output-dir MERGED"
    )


def not_a_folder(path: Path) -> str:
    """The sentence that refuses a file where a model folder is asked for."""
    if path.suffix == ".gguf":
        return gguf(str(path))
    if any(path.match(pattern) for pattern in PICKLES):
        return pickled(str(path), str(path.parent), path.parent)
    return f"{path}: a file, not a model folder"


def remote_code(path: Path) -> str:
    """The sentence that refuses code that comes with a model."""
    return (
        f"{path}: auto_map asks to run code that comes with the model, which jaxalign never does; use the model's "
        "version without remote code, or remove the field if model_type is a plain one"
    )


def quantised(path: Path, method: str) -> str:
    """The sentence that refuses quantised weights."""
    return (
        f"{path}: quantization_config: {method} weights are quantised and not read; use the unquantised model, or "
        "dequantise it once with transformers (model.dequantize(), then model.save_pretrained)"
    )
