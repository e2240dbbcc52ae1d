"""The dialogue study in miniature: how dialogues are made, and the ``paper`` preset by path, killed and run again."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from benchmarks._judge_server import Act, JudgeServer
from experiments import _hh_data, _results, hh_dialogue
from experiments._hh import Training, examples, train_dpo
from experiments._hh_judge import CHOSEN, Answers, JudgeSettings, SeededPair, check_judge, judge_answers, make_judge
from experiments._hh_report import BASE, DPO, PREFERRED_FT, REJECTED, Found, write
from experiments._stages import Stages
from experiments.assets.movie_reviews import MovieReviews, Reviews
from jaxalign import evaluation, models, sharding
from jaxalign.data import load_records
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import EndpointConfig
from jaxalign.training import OptimizerConfig
from tests.models.tiny import uncompiled_params
from tests.tiny_sentiment import tokenizer

CONFIG = models.ModelConfig(
    family="gpt2", vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
    max_positions=160, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
    attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))


def write_hh(path, prompts, extra=()):
    rows = [{"chosen": f"{one} w{i} w1", "rejected": f"{one} w2 w{i}"} for i, one in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]))
    return str(path)


def single(word):
    return f"\n\nHuman: {word}?\n\nAssistant:"


def study_of(folder, url):
    tokens = tokenizer()
    tokens.backend_tokenizer.post_processor = None
    models.save_pretrained(folder / "model", CONFIG, uncompiled_params(CONFIG), tokens)
    long = single("a") + " b\n\nHuman: c?\n\nAssistant:"
    short = Training(steps=2, batch_size=4, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1))
    return dataclasses.replace(
        hh_dialogue.PRESETS["paper"],
        model=str(folder / "model"),
        dialogues=write_hh(folder / "train.jsonl", [*(single(f"w{i}") for i in range(20)), long]),
        held_out_dialogues=write_hh(folder / "test.jsonl", [long, *(single(f"q{i}") for i in range(6))]),
        held_out_split="train",
        prompts=5,
        judge=JudgeSettings(kind="endpoint", endpoint=EndpointConfig(model="loopback", base_url=url)),
        tuning=short,
        dpo=short,
        reward=short,
        measure_every=1,
        best_of=(1, 2),
        temperatures=(0.0, 0.7),
        training_temperatures=(0.7,),
        max_length=64,
        max_prompt_length=48,
        max_new_tokens=6,
        sampling_batch=8,
        seeds=(0,),
        accumulation=2,
        checkpoint_every=1,
    )


def dialogues_of(study):
    return _hh_data.load_dialogues(
        study.dialogues, study.held_out_dialogues, study.held_out_split, train=study.train, held_out=study.prompts,
        shot_words=study.shot_words, seed=study.seed,
    )  # fmt: skip


def plain(result):
    return dataclasses.replace(result, seconds=0.0)


AT = (DPO, 0.7, None)


class Killed(Exception):
    pass


def test_the_study_is_killed_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-this-test")
    output = tmp_path / "out"
    with JudgeServer(lambda *_: Act()) as server:
        study = study_of(tmp_path, server.url)
        original = Stages.stage

        def dies(self, name, *rest):
            if name == "answers-base":
                raise Killed
            return original(self, name, *rest)

        monkeypatch.setattr(Stages, "stage", dies)
        with pytest.raises(Killed):
            hh_dialogue.run(study, output, "paper")
        assert not (output / "result.json").exists()
        monkeypatch.setattr(Stages, "stage", original)
        capsys.readouterr()
        first = hh_dialogue.run(study, output, "paper")
        assert capsys.readouterr().out.count("kept from an earlier run") == 4

        asked = len(server.requests)
        texts = {(pair.prompt, frozenset((pair.ours, pair.theirs))) for pair in verdicts(output)}
        assert asked == sum(len(both) == 2 for _, both in texts)
        shutil.rmtree(next((output / "stages").glob("verdicts-*")))
        said = result_of(output)
        assert plain(hh_dialogue.run(study, output, "paper")) == plain(first)
        assert len(server.requests) == asked
    assert result_of(output) == said
    check(study, first, output)


def result_of(output):
    """What ``result.json`` says, but for the time it took."""
    return plain(_results.load(output))


def test_dpo_that_is_killed_while_it_is_measured_ends_as_if_it_had_not_been(tmp_path):
    study = study_of(tmp_path, "http://localhost")
    config, params, tokens = hh_dialogue.load_model(study.model)
    pairs = examples(study, tokens, dialogues_of(study).train, "preference")
    calls = []

    def measure(policy, dies=0):
        calls.append(float(policy["embed"]["tokens"].sum()))
        if len(calls) == dies:
            raise Killed
        return {"0.7": [f"{calls[-1]:.6f}"]}

    def train(folder, measure=measure):
        return train_dpo(config, params, pairs, study, 0, tmp_path / folder, measure, lambda *_: None)

    whole, measured = train("whole")
    assert list(measured) == ["0", "1", "2"]
    with pytest.raises(Killed):
        train("killed", functools.partial(measure, dies=6))
    again, remeasured = train("killed")
    assert len(calls) == 7  # the steps measured before are not measured again
    assert remeasured == measured
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def verdicts(output):
    return evaluation.read_judged(load_records(str(output / "verdicts.jsonl")))


def check(study, result, output):
    parts = dialogues_of(study)
    pairs = verdicts(output)
    assert {pair.against for pair in pairs} == {CHOSEN}
    assert {pair.prompt for pair in pairs} == {one.prompt.strip() for one in parts.held_out}
    temperatures, steps, seeds = len(study.temperatures), 3, len(study.seeds)
    methods = [pair.method for pair in pairs]
    assert methods.count(DPO) == 5 * seeds * (temperatures + steps)
    assert methods.count(PREFERRED_FT) == methods.count("Best of 2") == methods.count(BASE) == 5 * seeds * temperatures
    assert methods.count(REJECTED) == 5
    start = [pair.ours for pair in pairs if pair.step == 0]
    assert start == [pair.ours for pair in pairs if pair.method == PREFERRED_FT and pair.temperature == 0.7]
    last = [pair.ours for pair in pairs if pair.step == 2]
    assert last == [pair.ours for pair in pairs if pair.method == DPO and pair.step is None and pair.temperature == 0.7]
    assert last != start

    assert (result.seeds, result.preset, result.judges) == (1, "paper", {"helpful": "loopback (endpoint)"})
    assert all(np.isfinite(one.found.estimate) for one in result.claims)
    for figure in result.figures:
        assert (output / figure.file).stat().st_size > 0
    assert not any("q1" in str(table.rows) for table in result.tables)  # HH's text stays out of the report


def test_rates_and_claims_are_those_of_the_verdicts(tmp_path):
    """Three seeds of made verdicts, some of them invalid."""
    study = dataclasses.replace(hh_dialogue.PRESETS["mini"], seeds=(0, 1, 2), prompts=40)
    held_out = [_hh_data.Dialogue(single(f"q{i}"), f" w{i}", " w") for i in range(40)]
    random = np.random.default_rng(0)
    shares = {DPO: 0.8, PREFERRED_FT: 0.4, "Best of 4": 0.5, "Best of 16": 0.55, BASE: 0.1}
    pairs = []

    def judged(method, seed, share, temperature, step=None):
        for one in held_out:
            drawn = "invalid" if random.random() < 0.02 else "win" if random.random() < share else "lose"
            pair = evaluation.JudgedPair(
                prompt=one.prompt.strip(), ours=f"a b {seed}", theirs=one.chosen.strip(), outcome=drawn,
                axis="positive", method=method, against=CHOSEN, judge="j", temperature=temperature, step=step,
            )  # fmt: skip
            pairs.append(SeededPair(seed=seed, pair=pair))

    for seed in study.seeds:
        for at in study.temperatures:
            for method, share in shares.items():
                judged(method, seed, share, at)
        for step, share in ((0, 0.4), (2, 0.95), (4, 0.6)):
            for at in study.training_temperatures:
                judged(DPO, seed, share, at, step)
    judged(REJECTED, 0, 0.2, None)
    parts = _hh_data.Dialogues(held_out, held_out, held_out[:2])
    known = [evaluation.Interval(0.7, 0.6, 0.8)] * 3
    result = write(tmp_path, study, "mini", Found(pairs, parts, known, "j", 1.0))

    outcomes = [one.pair.outcome for one in pairs if (one.pair.method, one.pair.temperature, one.pair.step) == AT]
    rate = 100 * evaluation.win_rate(outcomes).rate
    value = next(one for one in result.values if one.what.endswith("DPO (%)"))
    found = {one.claim: one for one in result.claims}
    improves = found["DPO improves over the chosen answers"]
    # A prompt on which one seed's verdict is invalid is left out of all seeds.
    assert value.ours.estimate == pytest.approx(rate, abs=5)
    assert improves.found.estimate == pytest.approx(value.ours.estimate - 50)
    assert np.mean(improves.by_seed) == pytest.approx(improves.found.estimate)
    said = {claim: one.verdict for claim, one in found.items()}
    assert (
        said["DPO improves over the chosen answers"]
        == said["2-shot base does not improve over the chosen answers"]
        == "holds"
    )
    assert said["DPO is better than Preferred-FT"] == said["DPO is as good as Best of 16, or better"] == "holds"
    falls = found["DPO's win rate holds over the course of training, at temperature 0.7"]
    assert "last checkpoint (step 4) minus the best before it (step 2)" in falls.statistic
    assert max(falls.by_seed) < 0  # a seed's two checkpoints are one pair, and few pairs decide little
    assert falls.verdict == "undecided"
    assert "points, 5 are allowed" in falls.why
    favoured = {claim for claim, one in found.items() if "learning rate was chosen on 50 % of these" in one.why}
    assert favoured == {claim for claim in found if claim.startswith("DPO")}
    assert len(favoured) == 5
    assert plain(_results.load(tmp_path)).claims
    assert "q3" in str(result.tables[-1].rows)  # of a preset that shows some


def test_the_dry_run_shows_what_is_learnt_first(tmp_path):
    study = study_of(tmp_path, "http://localhost")
    batch = hh_dialogue.first_batch(study)
    assert len(batch.examples) == study.tuning.batch_size
    for example in batch.examples:
        text = batch.tokenizer.decode(example.tokens.tolist())
        assert text.startswith("\n\nHuman:")
        assert "\n\nAssistant:" in text
        assert example.count("target") > 0


def test_rows_of_hh_that_hold_no_pair_of_answers_are_left_out(tmp_path):
    one, other = single("x") + " y\n\nHuman: z?\n\nAssistant: w", single("x") + " v\n\nHuman: u?\n\nAssistant: t"
    extra = [
        {"chosen": single("empty") + " ", "rejected": single("empty") + " no"},
        {"chosen": one, "rejected": other},  # they part before the last turn
    ]
    path = write_hh(tmp_path / "rows.jsonl", [single(f"w{i}") for i in range(8)], extra)
    parts = _hh_data.load_dialogues(path, None, train=None, held_out=3, shot_words=20, seed=0)
    assert [len(parts.train), len(parts.held_out), len(parts.shots)] == [3, 3, 2]
    every = [*parts.train, *parts.held_out, *parts.shots]
    assert sorted(each.prompt for each in every) == [single(f"w{i}") for i in range(8)]
    assert all(each.chosen.startswith(" w") and each.chosen.endswith(" w1") for each in every)
    with pytest.raises(InputError, match=r"--dialogues: .* 4 to train on, 2 single turns|single turns to ask"):
        _hh_data.load_dialogues(path, None, train=4, held_out=3, shot_words=20, seed=0)


def most_letters(prompts, completions):
    return np.array([float(len(text)) for text in completions])


def test_a_reward_or_a_local_model_judges(tmp_path):
    dialogues = [_hh_data.Dialogue(single(f"q{i}"), " w1 w2", " w3") for i in range(4)]
    answers = [Answers(method=DPO, seed=0, temperature=0.7, texts=["w1 w2 w3", "w1 w2", "w1", ""])]
    stages = Stages(tmp_path / "stages")
    reward = make_judge(JudgeSettings(kind="reward", model=f"{__name__}:most_letters"), stages, 0)

    def outcomes(judge):
        found = judge_answers(judge, "helpful", dialogues, answers, tmp_path / "verdicts.sqlite", lambda *_: None)
        return [one.pair.outcome for one in found]

    assert outcomes(reward) == ["win", "tie", "lose", "lose"]
    config = CONFIG.replace(max_positions=1024)
    models.save_pretrained(tmp_path / "judge", config, uncompiled_params(config), tokenizer())
    local = make_judge(JudgeSettings(kind="likelihood", model=str(tmp_path / "judge")), stages, 0)
    assert set(outcomes(local)) <= {"win", "lose", "tie"}
    assert local.name == str(tmp_path / "judge")


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"kind": "endpoint"}, "OPENAI_API_KEY: not set"),
        ({"kind": "endpoint", "axis": "helpfull"}, "--judge.axis: dialogue has no question 'helpfull'; did you mean"),
        ({"kind": "endpoint", "prompts": "nothing.toml"}, "nothing.toml"),
        ({"kind": "likelihood", "model": "models/nothing/here"}, "--judge.model: models/nothing/here: no such folder"),
        ({"kind": "reward", "model": "models/nothing/here"}, "--judge.model: models/nothing/here: no such folder"),
        ({"kind": "reward", "model": f"{__name__}:no_function"}, "--judge.model: .* has no 'no_function'"),
    ],
)
def test_a_judge_that_is_not_to_be_had_is_said_before_anything_is_trained(tmp_path, monkeypatch, judge, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    study = dataclasses.replace(hh_dialogue.PRESETS["mini"], judge=JudgeSettings(**judge))
    with pytest.raises(InputError, match=message):
        hh_dialogue.run(study, tmp_path / "out", "mini")
    assert not (tmp_path / "out").exists()


def test_a_judge_that_is_there_passes_the_check(tmp_path, monkeypatch):
    models.save_pretrained(tmp_path / "judge", CONFIG, uncompiled_params(CONFIG), tokenizer())
    check_judge(JudgeSettings(kind="likelihood", model=str(tmp_path / "judge")))
    check_judge(JudgeSettings(kind="reward", model=f"{__name__}:most_letters"))
    check_judge(JudgeSettings(kind="sentiment"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-this-test")
    check_judge(JudgeSettings(kind="endpoint"))


def part(name, count):
    def text(index):
        return f"{name}{index} a film that I saw. {name}{index} {'good' if index % 2 else 'bad'} film to see."

    return Reviews(tuple(text(i) for i in range(count)), np.arange(count) % 2)


def test_reviews_as_dialogues_keep_apart_what_is_asked_taught_and_judged():
    names = ("sft", "reward", "judge", "prompts", "rsentence", "jsentence", "hsentence")
    reviews = MovieReviews(*(part(name, 64) for name in names))
    train, asked = _hh_data.review_dialogues(reviews, 0)
    assert len(train) > 20
    assert len(asked) > 5
    assert not {one.prompt for one in train} & {one.prompt for one in asked}
    answers = [text for one in (*train, *asked) for text in (one.chosen, one.rejected)]
    assert len(set(answers)) == len(answers)
    for one in (*train, *asked):
        assert one.single_turn
        assert one.prompt.startswith(f"\n\nHuman: {'sft' if one in train else 'prompts'}")
        for answer, label in ((one.chosen, 1), (one.rejected, 0)):
            assert answer.startswith((" reward", " rsentence"))
            assert int("".join(c for c in answer.split()[0] if c.isdigit())) % 2 == label


def test_a_study_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="--best-of"):
        dataclasses.replace(hh_dialogue.PRESETS["mini"], best_of=(2, 4))
    with pytest.raises(InputError, match="--claim-temperature"):
        dataclasses.replace(hh_dialogue.PRESETS["mini"], claim_temperature=0.3)
    with pytest.raises(InputError, match=r"--judge.model"):
        JudgeSettings(kind="likelihood")
