"""What was probably meant: the nearest of known names, and of a folder's entries."""

import pytest

from jaxalign.errors import did_you_mean, nearest, nearest_path


@pytest.mark.parametrize(
    ("name", "found"),
    [("--learing-rate", "--learning-rate"), ("PPO", "ppo"), ("prompt_text", None), ("", None), ("zzz", None)],
)
def test_nearest(name, found):
    assert nearest(name, ("--learning-rate", "--seed", "ppo")) == found


def test_a_refusal_ends_with_the_nearest_or_with_all():
    assert did_you_mean("dop", ["dpo", "sft"]) == "did you mean 'dpo'?"
    assert did_you_mean("dop", ["dpo"], quoted=False) == "did you mean dpo?"
    assert did_you_mean("x", ["dpo", "sft"], what="the commands are") == "the commands are dpo, sft"


def test_the_nearest_file_of_the_same_folder(tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    (tmp_path / ".pair.jsonl").touch()
    assert nearest_path(tmp_path / "pair.jsonl") == f"; did you mean {tmp_path}/pairs.jsonl?"
    assert nearest_path(tmp_path / "pairs.json") == f"; did you mean {tmp_path}/pairs.jsonl?"
    assert nearest_path(tmp_path / "pairs.sqlite") == ""  # of another kind
    assert nearest_path(tmp_path / "pairs") == f"; did you mean {tmp_path}/pairs.jsonl?"
    assert nearest_path(tmp_path / "other.csv") == ""
    assert nearest_path(tmp_path / "no-folder" / "pair.jsonl") == ""
    assert nearest_path("\0") == ""
    assert nearest_path("") == ""
