"""Preference collection: the records are what the rater said of what was sampled, however often the run was killed."""

import copy
import csv
import itertools
import json

import jax
import numpy as np
import pytest

from jaxalign import data, sampling
from jaxalign.errors import InputError
from jaxalign.recipes import _collection
from jaxalign.recipes._collect import collect_preferences
from jaxalign.recipes._collection import CollectSettings
from tests.recipes import toy

PROMPTS = [" good film", " bad plot", " it was", " the", " fun and"]
SETTINGS = {"samples_per_prompt": 3, "max_new_tokens": 12, "save_every": 2, "temperature": 0.8, "seed": 1}


def words(prompts, completions):
    """A reward that has ties: the number of kind words."""
    return [2.0 * text.count(" good") + text.count(" fun") - text.count(" bad") for text in completions]


def longer(prompts, first, second):
    sizes = [len(one) - len(other) for one, other in zip(first, second, strict=True)]
    return ["first" if by > 0 else "second" if by < 0 else "tie" for by in sizes]


@pytest.fixture(scope="module")
def talker():
    """Ends less often than it might: of few answers there is nothing to rate."""
    params = toy.talker()
    table = params["embed"]["tokens"].at[toy.tokenizer().eos_token_id, 0].set(0.85)
    return {**params, "embed": {**params["embed"], "tokens": table}}


def prompts_of(contents=PROMPTS, tokenizer=None):
    records = data.Records([{"prompt": c} for c in contents], [f"p: row {i + 1}" for i in range(len(contents))],
                           data.Counters())  # fmt: skip
    return data.build_prompts(records, tokenizer or toy.tokenizer())[0]


@pytest.fixture
def collect(talker, tmp_path):
    def run(name="a", prompts=None, tokenizer=None, **options):
        asked = {key: options.pop(key) for key in list(options) if key in ("rater", "judge", "people", "sheet")}
        return collect_preferences(
            toy.SHAPES["gpt2"], options.pop("params", talker), tokenizer or toy.tokenizer(), prompts or prompts_of(),
            tmp_path / f"{name}.jsonl", config=CollectSettings(**SETTINGS | options),
            **(asked or {"rater": words}),
        )  # fmt: skip

    return run


def rows(result):
    return [json.loads(line) for line in result.output.read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(talker, tmp_path_factory):
    """An uninterrupted collection: its file's bytes, its folder."""
    output = tmp_path_factory.mktemp("reference") / "a.jsonl"
    settings = CollectSettings(**SETTINGS)
    collect_preferences(toy.SHAPES["gpt2"], talker, toy.tokenizer(), prompts_of(), output, rater=words, config=settings)
    return output.read_bytes(), output.with_suffix(".collect")


def test_records_hold_what_was_sampled_and_said(collect, reference):
    result = collect()
    assert result.output.read_bytes() == reference[0]
    found = rows(result)
    assert [row["prompt"] for row in found] == PROMPTS
    assert (result.prompts, result.responses, result.records) == (5, 15, 5)
    for row in found:
        assert row["ratings"] == words([], row["responses"])
        assert all(set(text.split()) <= set(toy.WORDS) for text in row["responses"])
    flags = [flag for row in found for flag in row["finished"]]
    cut = len(flags) - sum(flags)
    assert 0 < cut < len(flags)
    assert result.counts["responses cut"] == cut
    assert f", {cut} responses cut" in result.summary()
    # As data reads it: cut responses get no EOS.
    examples, _ = data.build_examples(data.load_records(result.output), toy.tokenizer())
    ends = sum(int((example.targets == toy.tokenizer().eos_token_id).sum()) for example in examples)
    kept = [row for row in found if len(set(row["ratings"])) > 1]
    assert len(examples) == len(kept)
    assert ends == sum(sum(row["finished"]) for row in kept)


def test_the_samples_are_the_samplers(collect, talker):
    """The likeliest tokens, so that they depend on no key: every response is the sampler's own text."""
    result = collect(top_k=1, records="ratings")
    tokenizer = toy.tokenizer()
    for row in rows(result):
        found = sampling.generate(
            toy.SHAPES["gpt2"], talker, [tokenizer.encode(row["prompt"])], jax.random.key(0), max_new_tokens=12,
            temperature=0.0, stop_tokens=(tokenizer.eos_token_id,),
        )  # fmt: skip
        ids = found.responses()[0]
        expected = tokenizer.decode(ids[:-1] if found.finished[0] else ids)
        assert row["responses"] == [expected] * 3
        assert row["finished"] == [bool(found.finished[0])] * 3


def test_every_prompt_is_sampled_with_its_own_seed(collect, talker):
    """What is sampled for a prompt is what the sampler gives it alone, whichever block it stands in."""
    tokenizer, key = toy.tokenizer(), jax.random.fold_in(jax.random.key(SETTINGS["seed"]), _collection.SAMPLES)
    for index, row in enumerate(rows(collect(records="ratings"))):
        place = PROMPTS.index(row["prompt"])
        found = sampling.generate(
            toy.SHAPES["gpt2"], talker, [tokenizer.encode(row["prompt"])], key, max_new_tokens=12, temperature=0.8,
            stop_tokens=(tokenizer.eos_token_id,), samples_per_prompt=3, seeds=[place],
        )  # fmt: skip
        texts = [
            tokenizer.decode(ids[:-1] if ended else ids)
            for ids, ended in zip(found.responses(), found.finished, strict=True)
        ]
        assert [text for text in texts if text] == row["responses"], index


def test_ratings_of_samples_that_are_gone_are_not_taken_for_others(collect):
    result = collect("gone")
    next(result.output.parent.glob("*/samples.jsonl")).unlink()
    with pytest.raises(InputError, match="--seed: was 1"):
        collect("gone", seed=7)
    with pytest.raises(InputError, match="ratings of samples that are no longer there"):
        collect("gone")


def test_a_margin_of_comparisons_is_refused(collect):
    with pytest.raises(InputError, match="--margin: a comparison says"):
        collect("m", judge=longer, records="all", margin=True)


def test_seed_decides_and_batch_size_does_not(collect, reference):
    assert collect("b", batch_size=3).output.read_bytes() == reference[0]
    assert collect("d", save_every=3).output.read_bytes() == reference[0]
    assert collect("c", seed=2).output.read_bytes() != reference[0]


@pytest.mark.parametrize("file", ["samples.jsonl", "ratings.jsonl"])
def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(collect, reference, tmp_path, file):
    whole, folder = reference
    for share in (0.0, 0.3, 0.45, 0.7, 0.999, 1.0):
        work = tmp_path / "a.collect"
        work.mkdir(exist_ok=True)
        (tmp_path / "a.jsonl").unlink(missing_ok=True)
        for source in folder.iterdir():
            (work / source.name).write_bytes(source.read_bytes())
        content = (folder / file).read_bytes()
        (work / file).write_bytes(content[: int(share * len(content))])
        if file == "samples.jsonl":  # a block is rated after it is sampled
            (work / "ratings.jsonl").unlink()
        assert collect().output.read_bytes() == whole
        for source in folder.iterdir():
            assert (work / source.name).read_bytes() == source.read_bytes()


def test_a_rater_that_fails_names_the_prompt_and_loses_nothing(collect, reference, monkeypatch):
    def fails(prompts, completions):
        if " it was" in prompts:
            raise TimeoutError("no answer")
        return words(prompts, completions)

    with pytest.raises(
        InputError, match=r"TimeoutError: no answer, called with p: row 3 alone .prompt ' it was'"
    ) as error:
        collect(rater=fails)
    assert isinstance(error.value.__cause__, TimeoutError)
    sampled = []
    generate = sampling.generate
    monkeypatch.setattr(
        _collection.sampling, "generate", lambda *a, **k: sampled.append(len(a[2])) or generate(*a, **k)
    )
    rated = []
    again = collect(rater=lambda p, c: rated.append(p) or words(p, c))
    assert again.output.read_bytes() == reference[0]
    assert sampled == [1]  # the last block; two were there
    assert len(rated) == 2


def test_what_decides_the_numbers_must_not_change(collect, talker):
    collect()
    with pytest.raises(
        InputError, match=r"^--temperature: was 0.8 in the collection that is in .*, is 0.7; use another"
    ):
        collect(temperature=0.7)
    with pytest.raises(InputError, match=r"^weights of --model: was"):
        collect(params={**talker, "final_norm": {**talker["final_norm"], "scale": talker["final_norm"]["scale"] * 2}})
    with pytest.raises(InputError, match=r"^tokenised prompts: was"):
        collect(prompts=prompts_of([*PROMPTS[:4], " fun"]))
    with pytest.raises(InputError, match=r"^rated by: was 'rater' .* is 'judge'"):
        collect(judge=longer)


def test_other_records_of_the_same_ratings(collect, monkeypatch):
    ratings = rows(collect())
    monkeypatch.setattr(_collection.sampling, "generate", lambda *a, **k: pytest.fail("sampled again"))
    for form in ("all", "best_worst", "adjacent"):
        result = collect(records=form, margin=True)
        found = {(row["prompt"], row["chosen"], row["rejected"]): row["margin"] for row in rows(result)}
        expected, candidates = {}, 0
        for row in ratings:
            ranked = sorted(zip(row["ratings"], row["responses"], strict=True), key=lambda pair: -pair[0])
            chosen = {
                "all": list(itertools.combinations(ranked, 2)),
                "best_worst": [(ranked[0], ranked[-1])],
                "adjacent": list(itertools.pairwise(ranked)),
            }[form]
            candidates += len(chosen)
            for better, worse in chosen:
                if better[0] > worse[0]:
                    expected[row["prompt"], better[1], worse[1]] = better[0] - worse[0]
        assert found == expected
        assert len(expected) > 2
        assert result.counts.get("tied pairs", 0) == candidates - result.records
        flags = {(row["prompt"], text): flag for row in ratings
                 for text, flag in zip(row["responses"], row["finished"], strict=True)}  # fmt: skip
        for row in rows(result):
            assert row["chosen_finished"] == flags[row["prompt"], row["chosen"]]
            assert row["rejected_finished"] == flags[row["prompt"], row["rejected"]]
        data.build_examples(rows(result), toy.tokenizer(), kind="preference")


def test_a_judge_sees_pairs_in_both_orders(collect):
    seen = []

    def judge(prompts, first, second):
        seen.extend(zip(prompts, first, second, strict=True))
        verdicts = longer(prompts, first, second)
        return ["who knows" if text == prompts[0] else verdict for text, verdict in zip(prompts, verdicts, strict=True)]

    result = collect(judge=judge, records="all")
    sampled = [json.loads(line) for line in (result.output.with_suffix(".collect") / "samples.jsonl").open()]
    orders = {row["index"]: row["responses"] for row in sampled}
    flipped = [orders[PROMPTS.index(p)].index(one) > orders[PROMPTS.index(p)].index(two) for p, one, two in seen]
    assert 0 < sum(flipped) < len(flipped)
    counts = result.counts
    assert counts["verdicts 'invalid'"] > 0
    decided = [len(one) != len(two) for p, one, two in seen]
    assert sum(counts.get(f"verdicts {v!r}", 0) for v in ("first", "second", "tie", "invalid")) == len(seen)
    assert 0 < result.records == counts.get("verdicts 'first'", 0) + counts.get("verdicts 'second'", 0) < sum(decided)
    for row in rows(result):
        assert len(row["chosen"]) > len(row["rejected"])
    assert counts.get("tied pairs") == counts.get("verdicts 'tie'")


def test_a_judges_ratings_are_shares_of_wins(collect):
    for row in rows(collect(judge=longer)):
        texts = row["responses"]
        for mine, rating in zip(texts, row["ratings"], strict=True):
            others = [text for text in texts if text != mine]
            wins = [np.sign(len(mine) - len(text)) / 2 + 0.5 for text in others]
            assert rating == pytest.approx(np.mean(wins))


def test_fewer_comparisons(collect):
    seen = []
    result = collect(judge=lambda p, *pair: seen.extend(p) or longer(p, *pair), comparisons_per_prompt=1)
    assert len(seen) == len(set(seen)) > 2
    assert all(len(row["responses"]) == 2 for row in rows(result))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("people", ["comparisons", "ratings"])
def test_people(collect, tmp_path, people, kind):
    """Rated by hand as ``longer`` and ``words`` would: the same records."""
    sheet = tmp_path / f"sheet.{kind}"
    result = collect(people=people, sheet=sheet)
    assert result.sheet == sheet
    assert not result.output.exists()
    read = [dict(row) for row in data.load_records(sheet)]
    assert result.waiting == len(read)
    assert [int(row["number"]) for row in read] == list(range(1, len(read) + 1))
    asked = [row["prompt"] for row in read]
    if people == "comparisons":
        assert asked != sorted(asked, key=PROMPTS.index)
        verdicts = longer([], [r["first"] for r in read], [r["second"] for r in read])
        for row, verdict in zip(read, verdicts, strict=True):
            row["verdict"] = verdict.upper()
    else:
        assert len(dict.fromkeys(asked)) == sum(a != b for a, b in itertools.pairwise(asked)) + 1
        for row in read:
            row["rating"] = words([], [row["response"]])[0]
    assert collect(people=people, sheet=sheet).waiting == len(read)  # nothing was written over
    write(sheet, read[::-1][1:])
    assert collect(people=people, sheet=sheet).waiting == 1
    write(sheet, read[::-1])
    done = collect(people=people, sheet=sheet)
    assert done.waiting == 0
    by_machine = collect("machine", **({"judge": longer} if people == "comparisons" else {"rater": words}))
    assert done.output.read_bytes() == by_machine.output.read_bytes()
    last = list(read[0])[-1]
    read[0][last] = "skip"
    write(sheet, read)
    skipped = collect(people=people, sheet=sheet)
    if people == "comparisons":
        assert skipped.counts["verdicts 'skip'"] == 1
    else:
        assert sum(len(row["responses"]) for row in rows(skipped)) < sum(
            len(row["responses"]) for row in rows(by_machine)
        )
    for changes, message in (
        ({last: "best"}, rf"row 2: field '{last}': expected .* or skip, got 'best'"),
        ({"number": 1}, "row 2: field 'number': 1 is there twice"),
        ({"number": 99}, "row 2: field 'number': expected 1 to"),
        ({list(read[0])[2]: "other"}, f"row 2: field '{list(read[0])[2]}': not the text that question 2 has"),
    ):
        write(sheet, [read[0], read[1] | changes])
        with pytest.raises(InputError, match=message):
            collect(people=people, sheet=sheet)


def write(path, some):
    if path.suffix == ".jsonl":
        toy.write_jsonl(path, some)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(some[0]))
        writer.writeheader()
        writer.writerows(some)


def test_chats(collect, talker):
    """Beside texts: through the template, ended by its end of turn (here the word "fun"), rated with their messages."""
    tokenizer = copy.deepcopy(toy.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ' the' if m['role'] == 'assistant' else ' it' }}{{ m['content'] }}<pad>{% endfor %}"
        "{% if add_generation_prompt %} the{% endif %}"
    )
    talker = copy.copy(talker)
    embed = talker["embed"]["tokens"]
    pad, fun = tokenizer.pad_token_id, tokenizer.encode(" fun")[0]
    talker["embed"] = {**talker["embed"], "tokens": embed.at[pad].set(embed[fun])}  # it says <pad> as often as " fun"
    chats = [[{"role": "user", "content": text}] for text in PROMPTS[:3]]
    seen = []
    result = collect(
        prompts=prompts_of([*chats, *PROMPTS[:3]], tokenizer), tokenizer=tokenizer, params=talker,
        rater=lambda p, c: seen.extend(p) or words(p, c),
    )  # fmt: skip
    found = rows(result)
    assert {json.dumps(row["prompt"]) for row in found} <= {json.dumps(text) for text in [*chats, *PROMPTS[:3]]}
    assert sum(isinstance(prompt, list) for prompt in seen) > 3
    in_chats = [text for row in found if isinstance(row["prompt"], list) for text in row["responses"]]
    in_texts = [text for row in found if isinstance(row["prompt"], str) for text in row["responses"]]
    assert not any("<pad>" in text for text in in_chats)
    assert any("<pad>" in text for text in in_texts)
    ended = [example for example in data.build_examples(found, tokenizer)[0] if pad in example.targets]
    assert ended


def test_bad_calls(collect, tmp_path):
    for options, message in (
        ({"rater": words, "judge": longer}, "give one of the three"),
        ({"samples_per_prompt": 1}, "--samples-per-prompt: must be at least 2, is 1"),
        ({"save_every": 0}, "--save-every: must be at least 1"),
        ({"margin": True}, "--margin: records of ratings have no pairs"),
        ({"rater": lambda p, c: [0.0] * len(p), "records": "all"}, r"no preference to write: .* \d+ tied pairs"),
        ({"max_new_tokens": 63}, "p: row 1 has 2 tokens; with --max-new-tokens 63 .* leave room for 1"),
        ({"people": "ratings", "sheet": "sheet.xls"}, "--sheet: sheet.xls: must end with .jsonl or .csv"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            collect(f"bad{len(message)}", **options)
    (tmp_path / "mine.jsonl").write_text("precious\n")
    with pytest.raises(InputError, match="is there already, and not of a collection"):
        collect("mine")
    assert (tmp_path / "mine.jsonl").read_text() == "precious\n"
