"""Dialogues of a single turn (Rafailov et al. 2023, arXiv 2305.18290, section 6.2, figures 3 and 4).

Preferred-FT, DPO from it, Best-of-N of it by a reward model of the same preferences, and the base model that is shown
two dialogues: how often a judge prefers the answer to the dataset's chosen one, over sampling temperature and, of DPO,
over training.

    python -m experiments.hh_dialogue --preset mini --output-dir runs/hh-dialogue
        A 0.85M-parameter model and film reviews as dialogues, packaged; three seeds; two CPU cores, about 5 minutes.
        The preferences are human text, as HH's are; what is better about an answer is that it is positive, and the
        judge is a sentiment model that was fitted on other reviews. At temperature 0.7: DPO 61.5 % [53.5, 69.4], Best
        of 16 53.6 %, Preferred-FT 42.7 %, the base model 29.9 %; text is garbled at this size.
    python -m experiments.hh_dialogue --preset hh --output-dir runs/hh-dialogue-sample
        SmolLM2-135M-Instruct on 1,156 genuine rows of Anthropic-HH, where they lie beside the checkout (or --dialogues
        FILE), judged by the likelihood of SmolLM2-1.7B-Instruct from a hub. One GPU, minutes. It has not been run.
    python -m experiments.hh_dialogue --preset gpu --output-dir runs/hh-dialogue-gpu
        Pythia-410M on Anthropic/hh-rlhf from a hub, judged by Qwen2.5-3B-Instruct's likelihood. One GPU with 40 GB, an
        hour or two. It has not been run.
    python -m experiments.hh_dialogue --preset paper --output-dir runs/hh-dialogue-paper
        Pythia-2.8B on Anthropic/hh-rlhf, Best of 128, judged by a model behind an OpenAI-compatible endpoint
        (OPENAI_API_KEY; --judge.endpoint.base-url); one accelerator with 80 GB, a day. Expected: DPO above 50 %, alone
        among the methods that do not sample many times; Preferred-FT and the base model below; Best of 128 about DPO's
        level; DPO's win rate steady over training. It has not been run.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from, every verdict in
OUTPUT_DIR/verdicts.sqlite: a second run continues and asks nothing twice. Every field of the preset is a flag (--help
after --preset).
"""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments._command import Command, FirstBatch
from experiments._hh import Study, Training, answer, best_answers, examples, prompt_ids, train_dpo, train_reward, tune
from experiments._hh_data import Dialogues, load_dialogues
from experiments._hh_judge import Answers, JudgeSettings, SeededPair, check_judge, judge_answers, make_judge
from experiments._hh_report import BASE, DPO, REJECTED, Found, best_of, write
from experiments._hindsight_tasks import load_model
from experiments._results import Result, finished
from experiments._stages import JSON, JSON_LINES, TREE, Report, Stages, digest
from experiments.assets import glassllm, smollm2
from jaxalign import data, recipes
from jaxalign.evaluation import Interval, read_judged
from jaxalign.training import OptimizerConfig, fingerprint

_PAPER = Study(
    model="EleutherAI/pythia-2.8b",
    dialogues="Anthropic/hh-rlhf",
    held_out_dialogues="Anthropic/hh-rlhf",
    judge=JudgeSettings(kind="endpoint"),
    tuning=Training(steps=2500),
    dpo=Training(steps=2500),
    reward=Training(
        steps=2500, optimizer=OptimizerConfig(learning_rate=3e-6, schedule="linear", warmup_steps=150, clip_norm=1.0)
    ),
    measure_every=250,
    seeds=(0,),
    dtype="bfloat16",
    accumulation=8,
    remat="full",
    checkpoint_every=250,
)


def _adam(rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=rate, schedule="linear", warmup_steps=10, clip_norm=1.0)


PRESETS = {
    "mini": Study(
        model="glassllm",
        dialogues="reviews",
        prompts=128,
        judge=JudgeSettings(kind="sentiment", axis="positive"),
        tuning=Training(steps=150, batch_size=32, optimizer=_adam(2e-3)),
        dpo=Training(steps=84, batch_size=32, optimizer=_adam(5e-4)),
        dpo_rate_chosen_on=0.5,
        reward=Training(steps=84, batch_size=32, optimizer=_adam(1e-3)),
        measure_every=21,
        best_of=(1, 4, 16),
        shot_words=11,
        max_length=128,
        max_prompt_length=40,
        max_new_tokens=28,
        show=4,
    ),
    "hh": dataclasses.replace(
        _PAPER,
        model="smollm2",
        dialogues="hh-sample",
        held_out_dialogues=None,
        prompts=64,
        judge=JudgeSettings(kind="likelihood", model="HuggingFaceTB/SmolLM2-1.7B-Instruct", axis="harmless"),
        tuning=Training(steps=60, batch_size=16, optimizer=_adam(2e-5)),
        dpo=Training(steps=60, batch_size=16, optimizer=_adam(5e-6)),
        reward=Training(steps=60, batch_size=16, optimizer=_adam(1e-5)),
        measure_every=20,
        best_of=(1, 4, 16),
        max_new_tokens=96,
        seeds=(0, 1, 2),
        accumulation=1,
        checkpoint_every=None,
    ),
    "gpu": dataclasses.replace(
        _PAPER,
        model="EleutherAI/pythia-410m",
        train=40_000,
        judge=JudgeSettings(kind="likelihood", model="Qwen/Qwen2.5-3B-Instruct"),
        tuning=Training(steps=600, optimizer=_adam(1e-5)),
        dpo=Training(steps=600, optimizer=_adam(2e-6)),
        reward=Training(steps=600, optimizer=_adam(5e-6)),
        measure_every=100,
        best_of=(1, 4, 16, 64),
        max_new_tokens=128,
        accumulation=2,
        checkpoint_every=100,
    ),
    "paper": _PAPER,
}  # fmt: skip


def run(study: Study, output: Path, name: str) -> Result:
    """All stages, then the report."""
    cache = output / "verdicts.sqlite"
    if not finished(output, name):  # to report again what is judged, no key is needed
        check_judge(study.judge)
    total = 4 * len(study.seeds) + 2 + (study.judge.kind == "sentiment")
    stages = Stages(output / "stages", total=total, console=Console())
    parts = _dialogues(study)
    model = load_model(study.model)
    answers: list[Answers] = []
    accuracy: list[Interval] = []
    for seed in study.seeds:
        own, of_reward = _one_seed(study, parts, model, stages, output / "runs", seed)
        answers += own
        accuracy.append(of_reward)
    answers += _base(study, parts, model, stages)
    texts = [one.rejected.strip() for one in parts.held_out]
    answers.append(Answers(method=REJECTED, seed=study.seeds[0], texts=texts))
    judge = make_judge(study.judge, stages, study.seed)
    rows = [[dataclasses.asdict(one) for one in answers], [dataclasses.asdict(one) for one in parts.held_out]]

    def verdicts(report: Report) -> list[dict[str, Any]]:
        found = judge_answers(judge, study.judge.axis, parts.held_out, answers, cache, report)
        return [pair.to_json() for pair in found]

    known = {"judge": [judge.name, judge.version, study.judge.axis], "answers": digest(rows)}
    lines = stages.stage("verdicts", known, verdicts, *JSON_LINES)
    pairs = [SeededPair(seed=line["seed"], pair=pair) for line, pair in zip(lines, read_judged(lines), strict=True)]
    return write(output, study, name, Found(pairs, parts, accuracy, judge.name, stages.seconds))


def first_batch(study: Study) -> FirstBatch:
    """What Preferred-FT's first update reads."""
    parts = _dialogues(study)
    tokenizer = _tokenizer(study.model)
    chosen = examples(study, tokenizer, parts.train, "chosen")
    batch = data.make_batches(chosen, batch_size=study.tuning.batch_size, seed=study.seeds[0])[0]
    by_id = {example.record_id: example for example in chosen}
    wanted = [by_id[index] for index in batch.record_ids.ravel().tolist() if index >= 0]
    return FirstBatch(wanted, tokenizer, f"Preferred-FT: {len(chosen)} chosen answers of {len(parts.train)} dialogues")


def _tokenizer(model: str) -> Any:
    """A model's tokenizer, without its weights."""
    if model == "smollm2":
        return smollm2.load_tokenizer()
    return glassllm.load_tokenizer() if model == "glassllm" else recipes.load_tokenizer(model)


def _dialogues(study: Study) -> Dialogues:
    return load_dialogues(
        study.dialogues, study.held_out_dialogues, study.held_out_split, train=study.train, held_out=study.prompts,
        shot_words=study.shot_words, seed=study.seed,
    )  # fmt: skip


def _inputs(study: Study, parts: Dialogues, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides training, and what decides answers beside the model that gives them."""
    trained = {
        "weights": digest(sorted(fingerprint(model[1]).items())),
        "dialogues": digest([dataclasses.asdict(one) for one in parts.train]),
        "limits": [study.max_length, study.max_prompt_length], "dtype": study.dtype,
    }  # fmt: skip
    asked = {
        "prompts": digest([one.prompt for one in parts.held_out]),
        "shots": digest([dataclasses.asdict(one) for one in parts.shots]),
        "temperatures": study.temperatures, "tokens": study.max_new_tokens, "batch": study.sampling_batch,
    }  # fmt: skip
    return trained, asked


def _one_seed(
    study: Study, parts: Dialogues, model: Any, stages: Stages, runs: Path, seed: int
) -> tuple[list[Answers], Interval]:
    """The answers of what is trained with one seed, and the reward model's accuracy."""
    config, base, tokenizer = model
    prompts = prompt_ids(study, tokenizer, parts.held_out)
    trained, asked = _inputs(study, parts, model)
    trained |= {"seed": seed, "tuning": dataclasses.asdict(study.tuning)}

    def folder(name: str, inputs: dict[str, Any]) -> Path:
        return runs / f"{name}-{digest(inputs)}"

    start = stages.stage(
        f"preferred-ft-seed-{seed}",
        trained,
        lambda report: tune(
            config, base, examples(study, tokenizer, parts.train, "chosen"), study, seed, folder("tuning", trained),
            report,
        ),
        *TREE,
    )  # fmt: skip
    pairs = examples(study, tokenizer, parts.train, "preference")

    def measure(policy: Any) -> dict[str, list[str]]:
        return {
            str(at): answer(config, policy, tokenizer, prompts, at, study, seed=seed)[1]
            for at in study.training_temperatures
        }

    with_dpo = trained | {"dpo": dataclasses.asdict(study.dpo), "beta": study.beta}
    measured = with_dpo | asked | {"measured": [study.measure_every, study.training_temperatures]}
    policy, over_training = stages.stage(
        f"dpo-seed-{seed}",
        measured,
        lambda report: train_dpo(config, start, pairs, study, seed, folder("dpo", measured), measure, report),
        *_TREE_AND_JSON,
    )
    with_reward = trained | {"reward": dataclasses.asdict(study.reward)}
    reward, known = stages.stage(
        f"reward-model-seed-{seed}",
        with_reward,
        lambda report: train_reward(config, start, pairs, study, seed, folder("reward", with_reward), report),
        *_TREE_AND_JSON,
    )

    def sampled(report: Report) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for at in study.temperatures:
            own = best_answers(config, start, reward, tokenizer, prompts, at, study, seed=seed, report=report)
            found[str(at)] = {best_of(int(n)): texts for n, texts in own.items()}
            found[str(at)][DPO] = answer(config, policy, tokenizer, prompts, at, study, seed=seed, report=report)[1]
        return found

    inputs = with_dpo | with_reward | asked | {"best of": study.best_of}
    by_temperature = stages.stage(f"answers-seed-{seed}", inputs, sampled, *JSON)
    answers = [
        Answers(method=method, seed=seed, temperature=float(at), texts=texts)
        for at, own in by_temperature.items()
        for method, texts in own.items()
    ]
    answers += [
        Answers(method=DPO, seed=seed, temperature=float(at), step=int(step), texts=texts)
        for step, own in over_training.items()
        for at, texts in own.items()
    ]
    return answers, Interval(known["accuracy"], known["low"], known["high"])


def _base(study: Study, parts: Dialogues, model: Any, stages: Stages) -> list[Answers]:
    """The base model, shown dialogues; it has no training seed, so each seed draws samples of its own."""
    config, base, tokenizer = model
    trained, asked = _inputs(study, parts, model)
    prompts = prompt_ids(study, tokenizer, parts.held_out, parts.shots)

    def sampled(report: Report) -> list[dict[str, Any]]:
        return [
            {"seed": seed, "temperature": at, "texts": answer(
                config, base, tokenizer, prompts, at, study, seed=seed, stop=True, report=report
            )[1]}
            for seed in study.seeds
            for at in study.temperatures
        ]  # fmt: skip

    inputs = asked | {"weights": trained["weights"], "dtype": study.dtype, "seeds": study.seeds}
    rows = stages.stage("answers-base", inputs, sampled, *JSON_LINES)
    return [Answers(method=BASE, **row) for row in rows]


def _save_tree_and_json(folder: Path, found: tuple[Any, Any]) -> None:
    TREE.save(folder, found[0])
    JSON.save(folder, found[1])


_TREE_AND_JSON = (_save_tree_and_json, lambda folder: (TREE.load(folder), JSON.load(folder)))

main = Command(__doc__, "hh_dialogue", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
