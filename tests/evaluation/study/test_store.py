"""The store: retries, second tabs, changed minds, and what a file may be gone on with."""

import concurrent.futures
import dataclasses
import os
import sqlite3

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import study
from tests.evaluation.study.running import OURS, make_study, new_id


def answer(position=1, preference="first", **changes):
    return study.Answer(**{"id": new_id(), "position": position, "preferences": {"overall": preference}, **changes})


@pytest.fixture
def store(tmp_path):
    with study.Store.open(tmp_path / "study.sqlite", make_study(4, raters=("anna", "ben"))) as opened:
        yield opened


def said(store, rater):
    return [one.preferred for one in store.judgements() if one.rater == rater]


def test_an_answer_sent_again_is_stored_once(store):
    sent = answer()
    for _ in range(3):
        store.submit(1, sent)
    assert len(store.judgements()) == 1
    # Also after another has replaced it: an old retry does not undo a change.
    store.submit(1, answer(preference="tie", revises=sent.id))
    store.submit(1, sent)
    assert said(store, "anna") == [None]
    with pytest.raises(study.Conflict):
        store.submit(2, sent)
    assert said(store, "ben") == []


def test_a_second_tab_changes_nothing_unless_it_saw_the_answer_it_changes(store):
    first = answer(seconds=3.0)
    store.submit(1, first)
    with pytest.raises(study.Conflict, match="another tab"):
        store.submit(1, answer(preference="second"))
    change = answer(preference="second", revises=first.id, seconds=2.0)
    store.submit(1, change)
    with pytest.raises(study.Conflict):
        store.submit(1, answer(preference="tie", revises=first.id))
    assert [judgement.seconds for judgement in store.judgements()] == [5.0]
    assert store.view(1, 1).answer.preferences == {"overall": "second"}


def test_the_order_shown_is_undone(store):
    for position in range(1, 5):
        view = store.view(1, position)
        ours_first = view.pair.systems[int(view.flipped)] == OURS
        store.submit(1, answer(position, "first" if ours_first else "second"))
    assert {store.view(1, position).flipped for position in range(1, 5)} == {True, False}
    assert said(store, "anna") == [0, 0, 0, 0]


def test_going_back_walks_through_the_answers_in_the_order_they_were_given(store):
    assert store.next_position(1, set()) == 1
    assert store.view(1, 1).previous is None
    for position in (2, 1, 3):
        store.submit(1, answer(position))
    assert store.next_position(1, set()) == 4
    assert [store.view(1, position).previous for position in (4, 3, 1, 2)] == [3, 1, 2, None]
    assert store.last_answered(1) == 3
    assert store.progress(1) == (3, 4)
    assert store.progress(2) == (0, 4)


def test_tabs_get_different_pairs_until_one_is_left(store):
    assert store.next_position(1, {1}) == 2
    assert store.next_position(1, {1, 2, 3}) == 4
    assert store.next_position(1, {1, 2, 3, 4}) == 1
    for position in range(1, 5):
        store.submit(1, answer(position))
    assert store.next_position(1, set()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        answer(position=5),
        answer(position=0),
        answer(preference="better"),
        answer(preferences={}),
        answer(preferences={"overall": "first", "other": "first"}),
    ],
    ids=["position", "zero", "word", "missing", "axis"],
)
def test_what_was_not_asked_is_not_stored(store, wrong):
    with pytest.raises(InputError):
        store.submit(1, wrong)
    assert store.judgements() == []


def test_a_tie_is_an_answer_only_where_it_is_offered(tmp_path):
    made = make_study(1, raters=("anna",), ties=False)
    with study.Store.open(tmp_path / "study.sqlite", made) as store, pytest.raises(InputError):
        store.submit(1, answer(preference="tie"))


def test_pairs_are_given_out_by_need_and_those_left_lying_once_more(tmp_path, monkeypatch):
    with study.Store.open(tmp_path / "study.sqlite", make_study(3, ratings_per_item=1)) as store:
        anna, ben = store.join("anna"), store.join("ben")
        assert store.progress(anna) == (0, 3)
        assert store.next_position(anna, set()) == 1
        assert store.next_position(anna, set()) == 1  # asking again takes no second one
        taken = [store.view(anna, 1).pair.row]
        for position in (1, 2):
            assert store.next_position(ben, set()) == position
            taken.append(store.view(ben, position).pair.row)
            store.submit(ben, answer(position))
        assert sorted(taken) == [1, 2, 3]
        assert store.next_position(ben, set()) is None
        assert store.progress(ben) == (2, 2)
        monkeypatch.setattr(study._store, "_RESERVED_S", 0)
        assert store.next_position(ben, set()) == 3
        assert store.view(ben, 3).pair.row == taken[0]


def test_names_are_taken_once(tmp_path):
    with study.Store.open(tmp_path / "study.sqlite", make_study()) as store:
        store.join("  Anna   B.")
        for name in ("anna b.", " ", "x" * 61, "a\nb\0"):
            with pytest.raises(InputError):
                store.join(name)
        assert store.raters() == {1: "Anna B."}
        assert store.progress(1) == (0, 4)


def test_many_threads_lose_nothing(store):
    answers = [(rater, answer(position)) for rater in (1, 2) for position in range(1, 5)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sent: store.submit(*sent), answers * 4))
    assert len(store.judgements()) == 8


def test_a_full_disk_stores_nothing_by_halves_and_is_got_over(store):
    store.submit(1, answer())
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    sent = answer(2, comment="x" * 50_000)
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.submit(1, sent)
        assert store.progress(1) == (1, 4)
    store._database.execute("PRAGMA max_page_count = 100000")
    store.submit(1, sent)
    assert store.progress(1) == (2, 4)


def test_the_same_study_goes_on_and_another_is_refused_by_its_flag(tmp_path):
    path = tmp_path / "study.sqlite"
    made = make_study(3, raters=("anna",))
    with study.Store.open(path, made) as store:
        secret = store.secret
        store.submit(1, answer())
    more = dataclasses.replace(made, raters=("anna", "ben"), title="Another headline", instructions="Read.")
    with study.Store.open(path, more) as store:
        assert (len(store.judgements()), store.secret, store.study) == (1, secret, more)
        assert store.progress(2) == (0, 3)
    changes = {
        "--pairs: not the pairs": {"pairs": made.pairs[:2]},
        "--seed: was 0 in": {"seed": 1},
        "--ties: was True": {"ties": False},
        "--axes: was": {"axes": study.read_axes(["helpful"])},
        "--ours: was None": {"ours": OURS},
        "--raters: was": {"raters": ("ben",)},
        "--ratings-per-item: was None": {"ratings_per_item": 1},
    }
    for words, change in changes.items():
        with pytest.raises(InputError) as caught:
            study.Store.open(path, dataclasses.replace(more, **change))
        assert str(caught.value).startswith(words)
        assert str(path) in str(caught.value)


def test_raters_among_whom_pairs_were_dealt_stay(tmp_path):
    made = make_study(3, raters=("anna", "ben"), ratings_per_item=1)
    study.Store.open(tmp_path / "study.sqlite", made).close()
    with pytest.raises(InputError, match="--raters: was"):
        study.Store.open(tmp_path / "study.sqlite", dataclasses.replace(made, raters=("anna", "ben", "cleo")))


def test_a_file_that_is_no_study_is_left_as_it_is(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a data base, but long enough to be read as one\n" * 40)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(InputError, match=f"--store: {path}"):
            study.Store.open(path, make_study())
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="no such file"):
        study.Store(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_only_its_owner_reads_a_file_that_holds_links(store, tmp_path):
    assert os.stat(tmp_path / "study.sqlite").st_mode & 0o077 == 0
