"""Our files beside those that transformers writes of the same model."""

import json

import pytest
import torch
import transformers

from jaxalign import models
from tests.models.folders import INDEX
from tests.parity.cases import build


@pytest.mark.parametrize(("family", "case"), [("llama", "untied"), ("gpt2", "plain")])
@pytest.mark.parametrize("limit", [20_000, 10**9])
def test_shards_index_and_generation_config(family, case, limit, tmp_path):
    theirs = build(family, case)
    theirs.generation_config = transformers.GenerationConfig(temperature=0.6, do_sample=True, eos_token_id=[2, 5])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    config, params = models.load_pretrained(tmp_path / "theirs")
    models.save_pretrained(tmp_path / "ours", config, params, max_shard_bytes=limit)
    names = {side: sorted(path.name for path in (tmp_path / side).iterdir()) for side in ("theirs", "ours")}
    assert names["ours"] == names["theirs"]
    assert (INDEX in names["ours"]) == (limit == 20_000)
    if limit == 20_000:
        ours, other = (json.loads((tmp_path / side / INDEX).read_text()) for side in ("ours", "theirs"))
        assert ours["metadata"] == other["metadata"]
        assert set(ours["weight_map"]) == set(other["weight_map"])
    kept, written = ((tmp_path / side / "generation_config.json").read_text() for side in ("ours", "theirs"))
    assert json.loads(kept) == json.loads(written)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(len(found) for found in info.values())
    for (name, ours), other in zip(again.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(ours, other), name
    assert again.generation_config.eos_token_id == [2, 5]
