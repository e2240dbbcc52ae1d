"""Which runs may begin again where there is no checkpoint to go on from."""

import json
from pathlib import Path

import pytest

from jaxalign import recipes
from jaxalign.errors import InputError
from jaxalign.recipes import _resume


def left(folder, *, steps, save_every, last=""):
    """What a run leaves that is killed after so many steps, before its first checkpoint is whole."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"save_every": save_every}))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step + 1}}}\n' for step in range(steps)) + last)


def begun(folder, save_every):
    """A run that begins here, as far as its folder shows."""
    config = recipes.FitConfig(max_steps=9, save_every=save_every, mesh="data=1")
    checkpoints, restored = _resume.open_run(folder, config, None, {}, {})  # there is no state to restore
    checkpoints.close()
    assert restored is None


def test_a_run_that_is_killed_again_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    """However often it would save each time, and wherever the second kill comes."""
    left(tmp_path, steps=15, save_every=10)

    def kill(path, *_, **__):
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", kill)
        with pytest.raises(KeyboardInterrupt, match=r"config\.json"):
            begun(tmp_path, save_every=1)
    for _ in range(2):
        begun(tmp_path, save_every=1)
        assert json.loads((tmp_path / "config.json").read_text())["save_every"] == 1
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("last", ["", "1", "null", '{"loss": 1.0}', '{"step": null}', '{"step": 9, "lo'])
def test_a_run_is_as_far_as_its_last_whole_row(tmp_path, last):
    left(tmp_path, steps=4, save_every=2, last=last)
    _resume._check_not_lost(tmp_path)
    left(tmp_path, steps=5, save_every=2, last=last)
    with pytest.raises(InputError, match="holds the metrics of 5 steps but no checkpoint to go on from"):
        _resume._check_not_lost(tmp_path)


@pytest.mark.parametrize("config", ["", "1", "null", "[]", "{}", '{"save_every": null}', '{"save_ev'])
def test_a_config_that_says_nothing_allows_nothing(tmp_path, config):
    left(tmp_path, steps=1, save_every=2)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match="holds the metrics of 1 steps"):
        _resume._check_not_lost(tmp_path)
