"""The page in a real browser (headless Chromium), without a mouse."""

import os
import shutil

import pytest

from jaxalign.evaluation import study
from tests.evaluation.study.running import OURS, THEIRS, make_pairs, make_study, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page's tests need a Chromium on the PATH")

SHOWN = "!document.getElementById('comparison').hidden"
FINISHED = "!document.getElementById('finished').hidden"
HOSTILE = (
    "<script>window.pwned = 1; alert(1)</script><img src=x onerror='window.pwned = 1; alert(2)'>"
    "<svg onload=alert(3)></svg><a href='javascript:alert(4)'>x</a></textarea></div><iframe srcdoc='<b>x</b>'></iframe>"
    "\u202e{{7*7}} ${7*7} &lt;b&gt; <style>*{display:none}</style>"
)


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium):
    """A browser of its own; whatever goes wrong in its pages fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(30_000)
    wrong = []
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    context.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield context
    context.close()
    assert wrong == []


def wait_for(page, condition, argument=None):
    return page.wait_for_function(f"argument => {condition}", arg=argument, polling=20)


def position(page):
    return page.locator("#comparison").get_attribute("data-position")


def begin(page, link):
    page.goto(link)
    wait_for(page, "document.activeElement.id === 'begin'")
    page.keyboard.press("Enter")
    wait_for(page, SHOWN)


def press(page, keys):
    """Press keys, the last of which saves, and wait for what comes next. True: everything is answered."""
    before = position(page)
    for key in keys:
        page.keyboard.press(key)
    moved = f"({FINISHED}) || document.getElementById('comparison').dataset.position !== argument"
    wait_for(page, moved, before)
    return page.evaluate(FINISHED)


def better(page):
    """The key of the response that "Better" stands in."""
    return "1" if page.locator("#first-content").inner_text().startswith("Better") else "2"


def test_two_hundred_judgements_in_two_tabs_by_keyboard(context, tmp_path):
    made = make_study(100, ("accuracy", "helpful"), raters=("anna",))
    with serving(tmp_path / "study.sqlite", made) as one:
        tabs = [context.new_page(), context.new_page()]
        for tab in tabs:
            begin(tab, one.link("anna"))
        assert position(tabs[0]) != position(tabs[1])
        finished, turn = [False, False], 0
        while not all(finished):
            tab = turn % 2
            if not finished[tab]:
                finished[tab] = press(tabs[tab], [better(tabs[tab]), "t", "Enter"])
            turn += 1
        assert turn == 101  # each tab its own half; the last answer leaves nothing for the other
        assert "Thank you, anna." in tabs[0].inner_text("#finished")
    with study.Store(tmp_path / "study.sqlite") as store:
        judgements = store.judgements()
    assert len(judgements) == 200
    assert {one.preferred for one in judgements if one.axis == "accuracy"} == {0}
    assert {one.preferred for one in judgements if one.axis == "helpful"} == {None}
    assert {one.flipped for one in judgements} == {True, False}
    assert len({(one.pair.row, one.axis) for one in judgements}) == 200
    assert all(0 <= one.seconds < 60 for one in judgements)


def test_hostile_texts_are_texts(context, tmp_path):
    pair = study.Pair(1, HOSTILE, (OURS, THEIRS), (HOSTILE + "1", HOSTILE + "2"))
    turns = [{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    axes = (study.Axis("<b>axis</b>", HOSTILE, HOSTILE),)
    made = study.Study(
        pairs=[pair, study.Pair(2, turns, (OURS, THEIRS), ("a", "b"))], axes=axes, title=HOSTILE, instructions=HOSTILE
    )
    with serving(tmp_path / "study.sqlite", made) as one:
        page = context.new_page()
        page.goto(one.address.link())
        wait_for(page, "document.activeElement.id === 'name'")
        page.keyboard.type("<img src=x onerror=alert(5)>")
        page.keyboard.press("Enter")
        wait_for(page, "document.activeElement.id === 'begin'")
        page.keyboard.press("Enter")
        wait_for(page, SHOWN)
        seen = []
        for keys in (["1", "c"], ["2", "c"]):
            seen.append([page.locator(f"#{part}-content").text_content() for part in ("prompt", "first", "second")])
            page.keyboard.press(keys[0])
            page.keyboard.press(keys[1])
            page.keyboard.type(HOSTILE.replace("\u202e", "") + "12tb")
            press(page, ["Escape", "Enter"])
            assert page.evaluate("window.pwned") is None
            assert page.evaluate("document.scripts.length") == 1
            assert page.locator("img, iframe, style, a[href^=javascript], main svg:not(#finished svg)").count() == 0
        assert "Thank you, <img src=x onerror=alert(5)>." in page.inner_text("#finished")
        (shown,) = (texts for texts in seen if texts[0] == HOSTILE)
        assert sorted(shown[1:]) == [HOSTILE + "1", HOSTILE + "2"]
        (dialogue,) = (texts[0] for texts in seen if texts[0] != HOSTILE)
        assert dialogue == HOSTILE + HOSTILE + "Person" + HOSTILE
    with study.Store(tmp_path / "study.sqlite") as store:
        assert {judgement.comment for judgement in store.judgements()} == {HOSTILE.replace("\u202e", "") + "12tb"}


def test_who_joined_by_name_comes_back_without_his_own_link(context, tmp_path):
    with serving(tmp_path / "study.sqlite", make_study(2), token="a-token-of-our-own") as one:
        link = one.address.link("a-token-of-our-own")
        page = context.new_page()
        page.goto(link)
        wait_for(page, "document.activeElement.id === 'name'")
        assert not page.locator("#return").is_visible()
        page.keyboard.type("anna")
        page.keyboard.press("Enter")
        wait_for(page, "document.activeElement.id === 'begin'")
        assert page.url == one.link("anna")  # to keep
        page.keyboard.press("Enter")
        wait_for(page, SHOWN)
        press(page, ["1", "Enter"])
        page = context.new_page()
        page.goto(link)
        wait_for(page, "document.activeElement.id === 'name'")
        page.keyboard.type("Anna")  # whoever takes the name is not him
        page.keyboard.press("Enter")
        wait_for(page, "document.getElementById('status').textContent.includes('another name')")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Go on as anna"
        page.keyboard.press("Enter")
        wait_for(page, SHOWN)
        assert page.inner_text("#count") == "1 of 2 answered"
        assert list(one.store.raters().values()) == ["anna"]
        with page.expect_response("**/api/study"):  # a link that was cut before "#" loses no way back
            page.goto("about:blank")
            page.goto(f"{one.url}/")
        wait_for(page, "!document.getElementById('message').hidden")
        page = context.new_page()
        page.goto(link)
        wait_for(page, "document.activeElement.id === 'name'")
        assert page.inner_text("#return") == "Go on as anna"


def test_a_wrong_link_opens_nothing(context, tmp_path):
    with serving(tmp_path / "study.sqlite", make_study(2), token="a-token-of-our-own") as one:
        page = context.new_page()
        for wrong in ("", "#wrong-token-wrong-token", "#%ff\u00fc"):
            with page.expect_response("**/api/study") as refused:
                page.goto("about:blank")
                page.goto(f"{one.url}/{wrong}")
            assert refused.value.status == 403
            wait_for(page, "!document.getElementById('message').hidden")
            assert "This page needs the link that you were sent" in page.inner_text("#message")
            assert "Prompt" not in page.content()


def test_minds_are_changed_and_stopping_costs_nothing(context, tmp_path):
    made = make_study(3, ("accuracy", "overall"), raters=("anna",))
    with serving(tmp_path / "study.sqlite", made) as one:
        page = context.new_page()
        begin(page, one.link("anna"))
        # An answer is missing: nothing is saved, and the page says which.
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        wait_for(page, "document.getElementById('status').textContent.includes('Which is better overall?')")
        press(page, ["t", "Enter"])
        assert page.inner_text("#count") == "1 of 3 answered"
        # Back: the answer is there, and another one replaces it. Arrows are keys too.
        assert press(page, ["b"]) is False
        assert position(page) == "1"
        assert page.locator("input[type=radio]:checked").evaluate_all("inputs => inputs.map(input => input.value)") == [
            "first",
            "tie",
        ]
        page.keyboard.press("ArrowRight")
        press(page, ["Enter"])
        assert position(page) == "2"
        # The page is closed and opened again: it goes on there.
        page.close()
        page = context.new_page()
        page.goto(one.link("anna"))
        wait_for(page, SHOWN)
        assert position(page) == "2"
        # Shortcuts can be switched off; the rest of the keyboard still does it all.
        page.focus("#keys")
        page.keyboard.press("Space")
        page.keyboard.press("2")
        assert page.locator("input[type=radio]:checked").count() == 0
        page.focus(".axis input")
        for key in ("Space", "Tab", "Space", "Tab", "Tab", "Tab"):  # ... back, comment, save
            page.keyboard.press(key)
        press(page, ["Enter"])
        assert position(page) == "3"
        # What was pressed for the last question does not answer the next.
        assert page.locator("input[type=radio]:checked").count() == 0
    with study.Store(tmp_path / "study.sqlite") as store:
        words = [store.view(1, number).answer.preferences for number in (1, 2)]
        assert store.view(1, 3).answer is None
    assert words == [{"accuracy": "second", "overall": "tie"}, {"accuracy": "first", "overall": "first"}]


def test_an_answer_that_does_not_arrive_is_sent_until_it_does(context, tmp_path):
    with serving(tmp_path / "study.sqlite", make_study(2, raters=("anna",))) as one:
        page = context.new_page()
        begin(page, one.link("anna"))
        lost = []

        def lose(route):
            """The first does not reach the server, the second does, but what it answers is lost."""
            lost.append(route.request.post_data)
            if len(lost) == 2:
                route.fetch()
            if len(lost) < 3:
                route.abort()
            else:
                route.continue_()

        page.route("**/api/answers", lose)
        page.keyboard.press(better(page))
        page.keyboard.press("Enter")
        wait_for(page, "document.getElementById('status').textContent.startsWith('Not saved yet')")
        page.keyboard.press("Enter")  # impatience sends nothing twice
        wait_for(page, "document.getElementById('comparison').dataset.position === '2'")
        assert len(lost) == 3
        assert len(set(lost)) == 1
        assert page.inner_text("#count") == "1 of 2 answered"
        # A page that was reloaded before its answer arrived sends it then.
        page.unroute("**/api/answers")
        page.route("**/api/answers", lambda route: route.abort())
        page.keyboard.press(better(page))
        page.keyboard.press("Enter")
        wait_for(page, "document.getElementById('status').textContent.startsWith('Not saved yet')")
        page.unroute("**/api/answers")
        page.reload()
        wait_for(page, FINISHED)
        assert [judgement.preferred for judgement in one.store.judgements()] == [0, 0]


def test_two_tabs_with_the_same_pair_do_not_overwrite_each_other(context, tmp_path):
    with serving(tmp_path / "study.sqlite", make_study(1, raters=("anna",))) as one:
        tabs = [context.new_page(), context.new_page()]
        for tab in tabs:
            begin(tab, one.link("anna"))
        assert [position(tab) for tab in tabs] == ["1", "1"]  # only one was left
        assert press(tabs[0], ["1", "Enter"])
        assert press(tabs[1], ["2", "Enter"])
        assert "that answer was kept" in tabs[1].inner_text("#status")
        assert one.store.view(1, 1).answer.preferences == {"overall": "first"}


def test_the_page_is_laid_out_for_eyes_and_for_screen_readers(context, tmp_path):
    long = study.Pair(1, "A long prompt. " * 400, (OURS, THEIRS), ("word " * 600, "x" * 5000))
    made = study.Study(pairs=[long, *make_pairs(1)], axes=study.read_axes(["accuracy,coherence"]), raters=("anna",))
    with serving(tmp_path / "study.sqlite", made) as one:
        page = context.new_page()
        begin(page, one.link("anna"))
        if "Prompt" in page.inner_text("#prompt-content"):
            press(page, ["1", "1", "Enter"])
        boxes = [page.locator(f"#{part}-content").bounding_box() for part in ("first", "second")]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["width"] == boxes[1]["width"]  # neither response has more room
        assert page.locator("#save").is_visible()
        assert page.locator("#questions").bounding_box()["y"] < 860  # in sight, however long the texts are
        page.set_viewport_size({"width": 360, "height": 740})
        boxes = [page.locator(f"#{part}-content").bounding_box() for part in ("first", "second")]
        assert boxes[0]["x"] == boxes[1]["x"]
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        groups = page.get_by_role("radiogroup")
        assert groups.count() == 2
        assert page.get_by_role("radiogroup", name="Which is more accurate?").get_by_role("radio").count() == 3
        assert page.get_by_role("progressbar", name="answered").count() == 1
        assert page.get_by_role("status").count() == 1
        assert page.get_by_role("heading", name="Comparison").count() == 1
        # With Tab alone, once around: every control is reached, and is seen to be.
        reached = {}
        for _ in range(12):
            page.keyboard.press("Tab")
            name, ring = page.evaluate(
                """() => {
                    const on = document.activeElement;
                    const seen = on.matches(".choice input") ? on.nextElementSibling : on;
                    return [on.id || on.name || on.tagName, getComputedStyle(seen).outlineStyle];
                }"""
            )
            reached[name] = ring
        del reached["BODY"]  # after the last control comes the browser's own
        assert reached == dict.fromkeys(["SUMMARY", "axis-0", "axis-1", "comment", "save", "keys", "skip"], "solid") | {
            name: "solid" for name in reached if name == "back"
        }
