"""docs/evaluation.md: its code runs, top to bottom, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

from jaxalign import evaluation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_block_runs_as_it_is_written(tmp_path):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    shell = "".join(text for language, text in blocks if language == "bash")
    said = run("bash", "-euo", "pipefail", "-c", shell.replace("jaxalign ", f"{sys.executable} -m jaxalign "))
    assert "| ours | theirs | average | 66.7 | 16.7 | 16.7 | 50.0 [" in said
    said = run(sys.executable, "-c", "".join(text for language, text in blocks if language == "python"))
    assert "human-human agree" in said
    for name in ("evaluation/report.html", "human_study.tex", "frontier.svg", "page.html"):
        assert (tmp_path / name).stat().st_size > 0
    assert "&lt;b&gt;shown, not run&lt;/b&gt;" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_it_names_is_there():
    named = set(re.findall(r"`(\w+)`", PAGE)) | set(re.findall(r"evaluation\.(\w+)", PAGE.replace("evaluation.md", "")))
    functions = {name for name in named if "_" in name} - {"log_prob", "results_json"}
    assert functions <= set(evaluation.__all__), functions - set(evaluation.__all__)
    for path in re.findall(r"\]\((images/\w+\.png)\)", PAGE):
        assert (ROOT / "docs" / path).is_file()
