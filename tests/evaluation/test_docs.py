"""docs/evaluation.md: its code runs, top to bottom, in one folder."""

import re
import sys

from jaxalign import evaluation
from tests.markdown import DOCS, blocks, shell

PATH = DOCS / "evaluation.md"
PAGE = PATH.read_text(encoding="utf-8")


def test_every_block_runs_as_it_is_written(tmp_path):
    found = blocks(PATH)

    def text(language: str) -> str:
        return "".join(block.text for block in found if block.language == language)

    said = shell(["bash", "-euo", "pipefail", "-c", text("bash")], tmp_path)
    assert "| ours | theirs | average | 66.7 | 16.7 | 16.7 | 50.0 [" in said
    said = shell([sys.executable, "-c", text("python")], tmp_path)
    assert "human-human agree" in said
    for name in ("evaluation/report.html", "human_study.tex", "frontier.svg", "page.html"):
        assert (tmp_path / name).stat().st_size > 0
    assert "&lt;b&gt;shown, not run&lt;/b&gt;" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_it_names_is_there():
    named = set(re.findall(r"`(\w+)`", PAGE)) | set(re.findall(r"evaluation\.(\w+)", PAGE.replace("evaluation.md", "")))
    functions = {name for name in named if "_" in name} - {"log_prob", "token_log_probs", "results_json"}
    assert functions <= set(evaluation.__all__), functions - set(evaluation.__all__)
    for path in re.findall(r"\]\((images/\w+\.png)\)", PAGE):
        assert (DOCS / path).is_file()
