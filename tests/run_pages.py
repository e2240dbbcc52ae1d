"""Run the blocks of pages in one process on one device: ``python -m tests.run_pages FOLDER PAGE...``.

Each page has a folder of its own, with the files that docs/README.md makes and tiny models where it has the reader put
one. ``FOLDER/results.json`` says how each ended: null, or its traceback.
"""

import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path

import jax

from jaxalign import models
from tests.markdown import DOCS, RUN, blocks, execute
from tests.recipes import toy

BEFORE = {"human-study.md": ("runs/sft/final", "runs/dpo/final")}
"""Models that a page takes from commands of pages before it."""


def prepare(page: Path, folder: Path) -> None:
    """``models/start``, ``models/reward``, and what the index of the pages says to write."""
    config = toy.SHAPES["llama"].replace(max_positions=1024)
    params, tokenizer = toy.params("llama"), toy.tokenizer()
    for name in ("models/start", *BEFORE.get(page.name, ())):
        models.save_pretrained(folder / name, config, params, tokenizer)
    scored = models.add_score_head(config, params, jax.random.key(0))
    models.save_reward_model(folder / "models" / "reward", models.RewardModel(*scored), tokenizer)
    with contextlib.chdir(folder):
        for block in blocks(DOCS / "README.md"):
            if block.language == "bash" and not block.not_run:
                execute(block, {})


def run(page: Path, folder: Path) -> str | None:
    """Run a page's blocks; None, or what went wrong."""
    said = io.StringIO()
    names: dict[str, object] = {"__name__": "page"}
    sys.path.insert(0, "")
    try:
        folder.mkdir(parents=True)
        prepare(page, folder)
        with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for block in blocks(page):
                if block.language in RUN and not block.not_run:
                    execute(block, names)
    except (Exception, SystemExit):
        return f"{traceback.format_exc()}\n{said.getvalue()[-3000:]}"
    finally:
        sys.path.remove("")
    return None


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    results = {page: run(DOCS / page, folder / page.removesuffix(".md")) for page in sys.argv[2:]}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
