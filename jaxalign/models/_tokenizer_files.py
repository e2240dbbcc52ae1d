"""A folder's tokenizer as files, for a model that only passes through."""

import shutil
from pathlib import Path

from jaxalign.models._hub import local_folder

PATTERNS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "*.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip


class TokenizerFiles:
    """The tokenizer of a model folder or hub id, chat templates included; ``save_pretrained`` copies it bit for bit.

    Nothing of it is read: for ``models.save_pretrained(..., tokenizer=...)`` where a model is converted, not used.

    Raises:
        InputError: no such folder.
    """

    def __init__(self, folder_or_hub_id: str | Path, *, revision: str | None = None) -> None:
        self.folder = local_folder(folder_or_hub_id, weights=False, tokenizer=True, revision=revision)
        self.names = sorted({str(path.relative_to(self.folder)) for p in PATTERNS for path in self.folder.glob(p)})
        """The files there are, as paths inside the folder."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the files."""
        for name in self.names:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, target)
