"""Which runs may begin again where there is no checkpoint to go on from."""

import json

import pytest

from jaxalign.errors import InputError
from jaxalign.recipes import _resume


def left(folder, *, steps, save_every, last=""):
    """What a run leaves that is killed after so many steps, before its first checkpoint is whole."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"save_every": save_every}))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step + 1}}}\n' for step in range(steps)) + last)


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
