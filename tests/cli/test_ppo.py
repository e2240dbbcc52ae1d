"""``jaxalign reward`` and ``ppo`` in this process: the pipeline in three commands, presets, what is refused."""

import json

import pytest

from jaxalign import models
from jaxalign.cli._flags import with_preset
from jaxalign.errors import InputError
from jaxalign.recipes import ppo

SMALL = (
    "--max-steps", 2, "--batch-size", 4, "--mesh", "data=1", "--max-new-tokens", 4, "--ppo-epochs", 1, "--schedule",
    "constant", "--learning-rate", 0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def reward_folder(model, files, tmp_path_factory):
    from jaxalign.cli import main

    folder = tmp_path_factory.mktemp("reward")
    flags = (
        "reward", "--model", model, "--dataset", files["ranked"], "--output-dir", folder, "--max-steps", 1,
        "--batch-size", 3, "--mesh", "data=1", "--reward-loss", "plackett_luce",
    )  # fmt: skip
    assert main([str(flag) for flag in flags]) == 0
    return folder / "final"


def test_preferences_to_a_reward_model_to_ppo(shell, model, files, reward_folder, tmp_path):
    flags = ("ppo", "--model", model, "--reward-model", reward_folder, "--dataset", files["pairs"], *SMALL)
    status, _, errors = shell(*flags, "--output-dir", tmp_path / "run", "--kl-target", 3.0)
    assert status == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == [4, 8]
    assert abs(rows[0]["first_minibatch/ratio"] - 1) < 1e-6
    assert models.load_config(tmp_path / "run" / "final").labels == 0
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    status, _, errors = shell(*flags, "--output-dir", tmp_path / "run", "--kl-target", 3.0)
    assert status == 0, errors
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == before
    status, _, errors = shell(*flags, "--output-dir", tmp_path / "run", "--kl-target", 4.0)
    assert status == 2
    assert "--kl-target is 4.0" in errors


def test_a_python_function_is_a_reward_and_one_that_fails_is_named(shell, refused, model, files, tmp_path):
    source = tmp_path / "my_reward.py"
    source.write_text(
        "from pathlib import Path\n\n\n"
        "def brevity(prompts, completions):\n"
        "    if Path(__file__).with_name('broken').exists():\n"
        "        return [float('nan')] * len(completions)\n"
        "    return [-float(len(completion)) for completion in completions]\n"
    )
    flags = ("ppo", "--model", model, "--reward", f"{source}:brevity", "--dataset", files["demonstrations"], *SMALL)
    assert shell(*flags, "--output-dir", tmp_path / "run")[0] == 0
    longer = (*flags, "--output-dir", tmp_path / "run", "--max-steps", 4)
    (tmp_path / "broken").touch()
    said = refused(*longer)
    assert "update 3" in said
    assert "prompt" in said
    (tmp_path / "broken").unlink()
    assert shell(*longer)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--reward-model or --reward: give one of the two"),
        (("--reward", "no_such_module:function"), "--reward"),
        (("--reward", "json:dumps", "--max-prompt-length", 2), "--max-prompt-length|room is for 2"),
        (("--reward", "json:dumps", "--minibatches", 3), "--minibatches: 3"),
        (("--reward", "json:dumps", "--mesh", "data=8"), "4 episodes do not divide into --minibatches 1 x"),
        (("--reward", "json:dumps", "--missing-eos-penalty", -1), "--missing-eos-penalty: must be at least 0"),
        (("--reward", "json:dumps", "--missing-eos-score", "nan"), "--missing-eos-score: must be finite"),
        (("--reward", "json:dumps", "--beta", -1), "--kl-coefficient: must be at least 0"),
        (("--preset", "nothing"), "--preset: expected one of summarisation"),
    ],
)
def test_what_does_not_fit_is_one_line(refused, model, files, tmp_path, flags, message):
    import re

    base = ("ppo", "--model", model, "--dataset", files["demonstrations"], "--output-dir", tmp_path, *SMALL)
    assert re.search(message, refused(*base, *flags))


def test_a_reward_model_of_another_tokenizer_is_refused(refused, model, files, reward_folder, tmp_path):
    import shutil

    shutil.copytree(reward_folder, tmp_path / "other")
    for path in (tmp_path / "other").glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("<pad>", "<padding>"))
    base = ("ppo", "--model", model, "--dataset", files["pairs"], "--output-dir", tmp_path / "run", *SMALL)
    assert "another tokenizer" in refused(*base, "--reward-model", tmp_path / "other")
    assert "a language model, not a reward model" in refused(*base, "--reward-model", model)


def test_a_preset_gives_way_to_flags():
    flags = with_preset(["--preset", "summarisation", "--batch-size=8", "--max_new_tokens", "9"], ppo.PRESETS)
    assert flags.count("--temperature") == 1
    assert "--batch-size" not in flags
    assert flags[:3] == ["--batch-size=8", "--max_new_tokens", "9"]
    assert "--max-new-tokens" not in flags
    with pytest.raises(InputError, match="--preset"):
        with_preset(["--preset"], ppo.PRESETS)
    flags = with_preset(
        ["--preset", "summarisation", "--epochs", "2", "--missing-eos-penalty=1"], ppo.PRESETS, ppo.PRESET_YIELDS
    )
    assert "--max-steps" not in flags
    assert "--missing-eos-score" not in flags
    config = ppo.PPOFitConfig(**ppo.PRESETS["summarisation"])
    assert (config.missing_eos_score, config.score_at, config.temperature) == (-1.0, "after_eos", 0.7)


def test_another_reward_is_another_run(shell, refused, model, files, reward_folder, tmp_path):
    """Its zero and scale too, and also where it is given as a text reward: by content, not by name."""
    import shutil

    folder = tmp_path / "reward"
    for kind, flag in enumerate(("--reward-model", "--reward")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(reward_folder, folder)
        flags = ("ppo", "--model", model, flag, folder, "--dataset", files["pairs"], *SMALL)
        flags += ("--output-dir", tmp_path / f"run{kind}")
        assert shell(*flags)[0] == 0
        said = json.loads((folder / "reward.json").read_text())
        (folder / "reward.json").write_text(json.dumps(said | {"mean": said["mean"] + 5}))
        assert f"weights of {flag}" in refused(*flags, "--max-steps", 3)


def test_help_names_presets_and_beta(shell):
    status, output, _ = shell("ppo", "--help")
    assert status == 0
    said = " ".join(output.split())
    assert "summarisation" in said
    assert "--beta is another name of --kl-coefficient" in said


def test_demonstrations_are_read_before_training(shell, refused, model, files, tmp_path):
    flags = ("reward", "--model", model, "--dataset", files["pairs"], "--max-steps", 1, "--batch-size", 4, "--mesh")
    flags += ("data=1", "--output-dir", tmp_path / "run")
    assert "--normalise-dataset: " in refused(*flags, "--normalise-dataset", tmp_path / "none.jsonl")
    assert not (tmp_path / "run").exists()
    assert shell(*flags)[0] == 0
    # What zero is decides no update, so that a run which is done can be given another.
    status, _, errors = shell(*flags, "--normalise-dataset", files["demonstrations"])
    assert status == 0, errors
    assert json.loads((tmp_path / "run/final/reward.json").read_text())["measured_on"] == "demonstrations.jsonl"


def test_the_best_of_ten_evaluations_by_default(shell, model, files, tmp_path):
    flags = ("reward", "--model", model, "--dataset", files["pairs"], "--eval-dataset", files["pairs"], "--mesh")
    flags += ("data=1", "--max-steps", 20, "--batch-size", 4, "--output-dir", tmp_path / "run")
    assert shell(*flags)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/rewards/accuracy" in row] == list(range(0, 21, 2))
