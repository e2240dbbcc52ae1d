"""The tokenizer of a model folder."""

from typing import Any

from jaxalign.errors import InputError

__all__ = ["load_tokenizer"]


def load_tokenizer(folder_or_hub_id: str) -> Any:
    """The tokenizer of a model folder or hub id, by transformers.

    Raises ``InputError`` where there is none, or it would run code that comes with the model.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder_or_hub_id)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, json errors: all "no tokenizer"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder_or_hub_id}: no tokenizer that can be read ({reason})") from None
    # Of some families transformers makes a tokenizer without words where the folder holds none.
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise InputError(f"{folder_or_hub_id}: no tokenizer that can be read (its vocabulary is empty)")
    return tokenizer
