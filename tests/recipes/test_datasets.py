"""Published data sets by hub id, from every recipe's own flags."""

import pytest

from jaxalign.errors import InputError
from jaxalign.recipes import dpo, ppo, reward_model, sft
from tests.data import hub_rows
from tests.recipes import toy

COMPARISONS, HH = "openai/summarize_from_feedback:comparisons", "Anthropic/hh-rlhf"
AXIS, WEBGPT = "openai/summarize_from_feedback:axis@test", "openai/webgpt_comparisons"
TLDR, IMDB = "CarperAI/openai_summarize_tldr", "stanfordnlp/imdb"


def config(kind, dataset, tmp_path, **options):
    return kind(model="none", dataset=dataset, output_dir=tmp_path, **options)


@pytest.mark.parametrize(
    ("recipe", "kind", "dataset", "options", "count"),
    [
        (sft, sft.SFTConfig, IMDB, {}, 2),
        (sft, sft.SFTConfig, TLDR, {}, 1),
        (sft, sft.SFTConfig, HH, {"answer": "chosen"}, 1),
        (sft, sft.SFTConfig, COMPARISONS, {"answer": "chosen"}, 2),
        (dpo, dpo.DPOConfig, f"{HH}:helpful-base", {"eval_dataset": f"{HH}@test"}, 1),
        (dpo, dpo.DPOConfig, COMPARISONS, {"eval_dataset": f"{COMPARISONS}@validation"}, 2),
        (reward_model, reward_model.RewardModelConfig, COMPARISONS, {}, 2),
        (reward_model, reward_model.RewardModelConfig, AXIS, {}, 1),
        (reward_model, reward_model.RewardModelConfig, HH, {}, 1),
        (reward_model, reward_model.RewardModelConfig, WEBGPT, {}, 2),
    ],
)
def test_a_recipe_builds_examples_of_a_hub_id(monkeypatch, tmp_path, capsys, recipe, kind, dataset, options, count):
    hub_rows.install(monkeypatch)
    found = recipe.load(config(kind, dataset, tmp_path, **options))(toy.tokenizer())
    assert len(found.examples) == count
    assert bool(found.eval_examples) == ("eval_dataset" in options)
    said = capsys.readouterr()
    assert f"{dataset}: rows_read " in said.out + said.err
    assert ("skipped: tie 1" in said.out + said.err) == (dataset == WEBGPT)


@pytest.mark.parametrize(
    ("dataset", "options", "count"),
    [
        (IMDB, {"text_prefix": (2, 8)}, 2),
        (TLDR, {}, 1),
        (COMPARISONS, {}, 2),
        (HH, {}, 1),
        (WEBGPT, {}, 2),
        (AXIS, {}, 1),
    ],
)
def test_ppo_finds_prompts_in_all_of_them(monkeypatch, tmp_path, dataset, options, count):
    hub_rows.install(monkeypatch)
    prompts = ppo.load(config(ppo.PPOConfig, dataset, tmp_path, reward="a:b", **options))(toy.tokenizer())
    assert len(prompts) == count


def test_a_text_prefix_is_two_numbers(tmp_path):
    for wrong in ((0, 3), (5, 4)):
        with pytest.raises(InputError, match="--text-prefix: two numbers from 1 that do not fall"):
            config(ppo.PPOConfig, IMDB, tmp_path, reward="a:b", text_prefix=wrong)


def test_reviews_are_no_preferences(monkeypatch, tmp_path):
    hub_rows.install(monkeypatch)
    with pytest.raises(InputError, match=r"stanfordnlp/imdb: row 1: not a preference"):
        reward_model.load(config(reward_model.RewardModelConfig, IMDB, tmp_path))(toy.tokenizer())
