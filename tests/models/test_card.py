"""The card's header is YAML whatever stands in it, and names nothing of the machine it was written on."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxalign import models

HOSTILE = [
    "a: b",
    '"quoted"',
    "- x",
    "a\nb: c",
    "---",
    "#",
    "nul\x00\x7f\x85\u2028",
    "\\",
    "naïve 😀",
    "{}",
    "no",
    "1e3",
]


def header_of(text):
    return yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_come_back(name):
    text = models.card_text({"base_model": name, "tags": [name, "b"], "license": None, "datasets": []}, "# Title\n")
    assert header_of(text) == {"base_model": name, "tags": [name, "b"]}
    assert text.endswith("\n\n# Title\n")


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_every_name_comes_back(name):
    assert header_of(models.card_text({"base_model": name}, "")) == {"base_model": name}


def test_a_lone_surrogate_of_a_file_name_is_written_somehow():
    assert header_of(models.card_text({"a": "x\udcff"}, "")) == {"a": "x?"}


def test_somebodys_own_card_stays(tmp_path):
    card = tmp_path / "README.md"
    assert models.write_card(tmp_path, models.card_text({}, "one"))
    assert models.write_card(tmp_path, models.card_text({}, "two"))
    assert "two" in card.read_text()
    card.write_text("# Mine\n")
    assert not models.write_card(tmp_path, models.card_text({}, "three"))
    assert card.read_text() == "# Mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_local_paths_are_named_by_their_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/model").mkdir(parents=True)
    for path in ("runs/model", str(tmp_path / "runs/model"), "./runs/model", tmp_path / "runs/model"):
        assert models.public_name(path) == "model"
    assert models.public_name("/home/someone/gone") == "gone"
    assert models.public_name("~/gone") == "gone"
    assert models.public_name("org/model") == "org/model"
    assert models.public_name(".") == "."
    assert models.public_name("~") == "~"
    assert models.public_name("/home/someone/sft/final") == "sft/final"
    assert models.public_name("./runs/dpo/adapter") == "dpo/adapter"
    assert models.public_name("./final") == "final"
    assert models.public_name("/home/someone/reward.py:score") == "reward.py:score"


def test_the_base_is_the_hubs_model_or_what_the_folders_card_says(tmp_path):
    assert models.base_of("org/model") == "org/model"
    assert models.base_of(tmp_path) is None
    assert models.base_of("runs/none/final") is None
    models.write_card(tmp_path, models.card_text({"base_model": "org/model"}, ""))
    assert models.base_of(tmp_path) == "org/model"
    (tmp_path / "README.md").write_text("---\nbase_model:\n- org/other\n---\n")
    assert models.base_of(tmp_path) == "org/other"
    (tmp_path / "README.md").write_text("---\nbase_model: runs\n---\n")
    assert models.base_of(tmp_path) is None
    (tmp_path / "README.md").write_text(models.card_text({"base_model": "gpt2-large"}, ""))
    assert models.base_of(tmp_path) == "gpt2-large"


def test_names_stay_inside_their_code():
    assert models.code("a`b|c\nd") == "`a'b\\|c d`"
