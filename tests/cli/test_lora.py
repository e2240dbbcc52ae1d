"""``--lora-rank`` from the shell: the merged model, the adapter in PEFT's format, samples of both."""

import jax
import numpy as np

from jaxalign import models


def test_a_run_with_an_adapter_leaves_the_merged_model_and_the_adapter(model, files, shell, refused, tmp_path):
    folder = tmp_path / "run"
    flags = [
        "sft", "--model", model, "--dataset", files["demonstrations"], "--output-dir", folder, "--batch-size", "4",
        "--mesh", "data=1", "--max-steps", "2", "--learning-rate", "1e-2", "--warmup-steps", "0", "--lora-rank", "2",
        "--lora-targets", "query|value", "up", "--lora-dropout", "0.1", "--lora-rank-stabilised",
        "--frozen-layers", "1",
    ]  # fmt: skip
    status, _, errors = shell(*flags)
    assert status == 0, errors
    assert "its adapter alone in" in errors
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "checkpoints",
        "config.json",
        "final",
        "metrics.jsonl",
    }
    config, base = models.load_pretrained(model)
    adapted, lora = models.load_adapter(folder / "adapter", config)
    expected = models.LoRA(2, 32, ("query", "value", "up"), dropout=0.1, rank_stabilised=True)
    assert adapted.lora == expected
    merged = models.merge_lora(adapted, base, lora)
    final_config, final = models.load_pretrained(folder / "final")
    assert final_config == config
    jax.tree.map(np.testing.assert_array_equal, final, merged)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(base), strict=True))

    sample = ["sample", "--prompt", " the film was", "--max-new-tokens", "5", "--seed", "3"]
    _, with_adapter, _ = shell(*sample, "--model", model, "--adapter", folder / "adapter")
    _, of_final, _ = shell(*sample, "--model", folder / "final")
    assert with_adapter == of_final
    assert "no adapter_config.json" in refused(*sample, "--model", model, "--adapter", tmp_path)
    assert refused(*flags, "--lora-alpha", "16").startswith("--lora-alpha is 16.0, but")


def test_flags_of_an_adapter_without_one_are_refused(model, files, refused, tmp_path):
    line = refused(
        "dpo", "--model", model, "--dataset", files["pairs"], "--output-dir", tmp_path, "--lora-dropout", "0.1"
    )
    assert line == "--lora-dropout: there is no adapter without --lora-rank"
