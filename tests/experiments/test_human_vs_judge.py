"""People against judges: from summaries to the table, simulated, and through a store of the human-study page."""

import json
import math

import pytest

from experiments import _results, human_vs_judge
from experiments._content_words import ContentWords
from experiments._human_ratings import SimulatedPeople, read_ratings, simulated_ratings
from jaxalign.errors import InputError
from jaxalign.evaluation import JudgedPair, study
from tests.evaluation.study.running import new_id


def summaries(folder, posts=24):
    """A folder as tldr_summarization leaves it: DPO mostly repeats the document's words, PPO at 1 says none of them."""
    folder.mkdir()
    rows = []
    for index in range(posts):
        document, reference = f"the town{index} storm{index} began", f"storm{index} in town{index}"
        for method, temperature, text in (
            ("DPO", 0.25, f"storm{index} in town{index}" if index % 4 else f"a day {index}"),
            ("SFT", 0.25, f"the storm{index} it is" if index % 2 else f"well {index}"),
            ("PPO", 1.0, f"so so {index}"),
            ("PPO", 0.0, f"a storm{index} there"),
        ):
            row = {"prompt": document, "reference": reference, "method": method, "temperature": temperature}
            rows += [row | {"seed": 0, "summary": text}, row | {"seed": 1, "summary": "not compared"}]
    (folder / "summaries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ContentWords.of([f"the town{index} storm{index} began" for index in range(posts)]).save(
        folder / "content_words.json"
    )
    return folder


def cells(result):
    return {row[""]: row for row in result.tables[0].rows}


def test_simulated_people_and_the_table_says_so(tmp_path):
    settings = human_vs_judge.Settings(summaries=summaries(tmp_path / "tldr"))
    human_vs_judge.run(settings, tmp_path / "out", "mini")
    result = _results.load(tmp_path / "out")
    table = cells(result)
    assert "simulated: no person was asked" in result.tables[0].caption
    assert "simulated: no person was asked" in (tmp_path / "out" / "human_study.tex").read_text()
    assert all("(simulated)" in name for name in table if "human" in name)
    assert table["human-human agree (simulated)"]["SFT"] == ""
    assert table["human-human agree (simulated)"]["DPO"]
    rate = {name: float(table["human win % (simulated)"][name].split()[0]) for name in ("DPO", "SFT", "PPO-1")}
    assert rate["DPO"] > 50 > rate["PPO-1"]
    assert table["judge (S) win %"]["PPO-1"].startswith("0.0")
    assert {claim.claim[:9] for claim in result.claims} == {"Judge (S)", "Judge (C)"}
    assert all("simulated" in claim.statistic for claim in result.claims)
    for claim in result.claims:  # of people nothing is known, whatever the simulated ones say
        assert claim.verdict == "undecided"
        assert claim.reason.startswith("no person was asked; ")
    names = ("ratings.jsonl", "verdicts.jsonl", "result.json")  # the time it took among them
    first = [(tmp_path / "out" / name).read_text() for name in names]
    human_vs_judge.run(settings, tmp_path / "out", "mini")
    assert [(tmp_path / "out" / name).read_text() for name in names] == first
    assert result.seconds > 0


def test_people_by_the_study_page(tmp_path, capsys):
    """The pairs it writes are what the page opens, and what the page exports is what it reads."""
    output, folder = tmp_path / "out", summaries(tmp_path / "tldr", 8)
    asked = human_vs_judge.Settings(summaries=folder, people="asked")
    assert human_vs_judge.run(asked, output, "paper") is None
    assert "pairs-2.jsonl" in capsys.readouterr().out
    exported = []
    for raters, names in ((2, ("anna", "ben")), (1, ("anna",))):
        pairs, _ = study.read_pairs(output / f"pairs-{raters}.jsonl")
        made = study.Study(pairs=pairs, axes=study.read_axes(("overall",)), raters=names)
        with study.Store.open(tmp_path / f"{raters}.sqlite", made) as store:
            for rater in range(1, raters + 1):
                for position in range(1, len(pairs) + 1):
                    view = store.view(rater, position)
                    # DPO and SFT are preferred to PPO, and PPO at temperature 0 to itself at 1.
                    better = next(name for name in ("DPO", "SFT", "PPO") if name in view.pair.systems)
                    first = view.pair.systems.index(better) == int(view.flipped)
                    said = {"overall": "first" if first else "second"}
                    store.submit(rater, study.Answer(id=new_id(), position=position, preferences=said))
        study.export_study(tmp_path / f"{raters}.sqlite", tmp_path / f"export-{raters}")
        exported.append(tmp_path / f"export-{raters}" / "verdicts.jsonl")
    settings = human_vs_judge.Settings(summaries=folder, people="asked", ratings=tuple(exported))
    human_vs_judge.run(settings, output, "paper")
    result = _results.load(output)
    table = cells(result)
    assert [table["human win %"][name].split()[0] for name in ("DPO", "SFT", "PPO-1")] == ["100.0", "100.0", "0.0"]
    assert [table["N respondents"][name] for name in ("DPO", "SFT", "PPO-1")] == ["16", "8", "16"]
    assert [table["raters"][name] for name in ("DPO", "SFT", "PPO-1")] == ["2", "1", "2"]
    assert table["human-human agree"]["SFT"] == ""
    assert table["human-human agree"]["DPO"].startswith("100.0")
    assert "simulated" not in result.tables[0].caption
    assert {claim.claim[:9]: claim.verdict for claim in result.claims} == {
        "Judge (S)": "reversed",
        "Judge (C)": "reversed",
    }
    assert not any("no person" in claim.reason for claim in result.claims)
    assert {value.paper for value in result.values if "human win" in value.what} == {"58", "43", "17"}


def test_simulated_people_follow_their_model():
    pairs = [
        JudgedPair(prompt=f"p{i}", ours="a b", theirs="c d", outcome="invalid", method="DPO", against="PPO")
        for i in range(400)
    ]
    references = ["a b" if i % 2 else "c d" for i in range(400)]  # d is one standard deviation, either way
    rated = simulated_ratings(pairs, references, [2] * 400, SimulatedPeople(certainty=2.0, ties=0.2))
    assert len(rated) == 800
    assert all(len({one.rater for one in rated[at : at + 2]}) == 2 for at in range(0, 800, 2))
    tied = sum(one.outcome == "tie" for one in rated) / 800
    right = [one.outcome == ("win" if int(one.prompt[1:]) % 2 else "lose") for one in rated if one.outcome != "tie"]
    expected = 1 / (1 + math.exp(-2))
    assert abs(tied - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 800)  # standard errors
    assert abs(sum(right) / len(right) - expected) < 4 * math.sqrt(expected * (1 - expected) / len(right))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(InputError, match="--ratings: people are simulated"):
        human_vs_judge.Settings(ratings=(tmp_path / "v.jsonl",))
    with pytest.raises(InputError, match="--summaries: there is no"):
        human_vs_judge.run(human_vs_judge.Settings(summaries=tmp_path), tmp_path / "out", "mini")
    pair = JudgedPair(prompt="p", ours="a", theirs="b", outcome="invalid", method="DPO", against="PPO")
    row = {"prompt": "p", "ours": "a", "theirs": "c", "outcome": "win", "method": "DPO", "against": "PPO"}
    path = tmp_path / "verdicts.jsonl"
    for change, words in (({}, "field 'rater' is missing"), ({"rater": "anna"}, "none of these pairs")):
        path.write_text(json.dumps(row | change) + "\n")
        with pytest.raises(InputError, match=f"row 1: .*{words}"):
            read_ratings([path], [pair])
