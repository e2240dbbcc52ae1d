"""The server as browsers, impatient browsers and attackers meet it: real requests over the loopback address."""

import asyncio
import collections
import json
import socket

import httpx
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import study
from tests.evaluation.study.running import OURS, THEIRS, body_of, make_pairs, make_study, new_id, serving

TOKEN = "a-token-of-our-own"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    made = make_study(6, ("overall",), raters=("anna", "ben"))
    with serving(tmp_path_factory.mktemp("study") / "study.sqlite", made) as one:
        yield one


def test_seventy_five_raters_at_once_lose_nothing(tmp_path):
    """All join, answer and send every answer twice, at the same time: each pair is rated exactly as often as asked."""
    raters, pairs, each = 75, 25, 6

    async def rate(client, name):
        headers = {}
        joined = await client.post("/api/join", json={"name": name})
        assert joined.status_code == 200, joined.text
        headers["Authorization"] = f"Bearer {joined.json()['key']}"
        tab, sent = new_id(), 0
        state = (await client.post("/api/next", json={"tab": tab}, headers=headers)).json()
        while state["comparison"] is not None:
            body = body_of(state["comparison"], tab=tab)
            twice = [client.post("/api/answers", json=body, headers=headers) for _ in range(2)]
            one, other = await asyncio.gather(*twice)
            assert (one.status_code, other.status_code) == (200, 200)
            sent += 1
            state = other.json()
        return sent

    async def all_at_once(url):
        limits = httpx.Limits(max_connections=150)
        async with httpx.AsyncClient(base_url=url, headers={"Origin": url}, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(rate(client, f"rater {index}") for index in range(raters)))

    with serving(tmp_path / "study.sqlite", make_study(pairs, ratings_per_item=each)) as one:
        sent = asyncio.run(all_at_once(one.url))
    with study.Store(tmp_path / "study.sqlite") as store:
        judgements = store.judgements()
    assert sum(sent) == len(judgements) == pairs * each
    assert set(collections.Counter(one.pair.row for one in judgements).values()) == {each}
    assert max(collections.Counter((one.rater, one.pair.row) for one in judgements).values()) == 1
    assert {one.preferred for one in judgements} == {0}  # whichever way round they were shown
    assert {one.flipped for one in judgements} == {True, False}


def test_no_answer_names_a_system(tmp_path):
    """Neither in a page, nor in JSON, nor in a header, nor in an error."""
    seen = []
    made = make_study(5, ("overall",), raters=("anna",), ours=OURS)
    with serving(tmp_path / "study.sqlite", made) as one, one.client(one.key("anna")) as client:

        def ask(method, path, **options):
            answer = client.request(method, path, **options)
            seen.append(repr(answer.headers) + answer.text)
            return answer

        for path in ("/", "/study.js", "/server.js", "/study.css", "/icon.svg", "/api/study", "/none", "/api/none"):
            ask("GET", path)
        state = ask("POST", "/api/next", json={"tab": "0" * 32}).json()
        while state["comparison"] is not None:
            body = body_of(state["comparison"])
            state = ask("POST", "/api/answers", json=body).json()
            ask("POST", "/api/answers", json={**body, "id": new_id()})  # a conflict
        shown = ask("GET", "/api/comparisons/1").json()
        ask("POST", "/api/answers", json={**body, "preferences": {OURS[:3]: "first"}})
    assert shown["comparison"]["answer"]["preferences"]["overall"] in ("first", "second")
    # What a rater is told of a pair: its place in his own list, and texts. No number that pairs share.
    assert set(shown["comparison"]) == {"position", "prompt", "first", "second", "answer"}
    assert len(seen) == 21
    assert not [text for text in seen if OURS in text or THEIRS in text]


@pytest.mark.parametrize(
    "credential", ["wrong", "1.", "1.AAAAAAAAAAAAAAAAAAAAAA", "99.x", "²²²", "-1.x", "\xff" * 30, "1" * 3000]
)
def test_without_a_raters_key_there_is_nothing_to_see(running, credential):
    headers = [("origin", running.url), ("authorization", b"Bearer " + (credential.encode("latin-1") or b"?"))]
    with httpx.Client(base_url=running.url, headers=headers) as client:
        for method, path in (("GET", "/api/study"), ("POST", "/api/next"), ("GET", "/api/comparisons/1"),
                             ("POST", "/api/answers"), ("POST", "/api/join"), ("POST", "/api/leave")):  # fmt: skip
            body = {"json": {"tab": "0" * 32, "name": "eve", "id": new_id()}} if method == "POST" else {}
            answer = client.request(method, path, **body)
            assert answer.status_code == 403, path
            assert "Prompt" not in answer.text


def test_a_key_opens_its_own_raters_list_only(running):
    number, code = running.key("anna").split(".")
    assert running.access.rater(f"{number}.{code}") == 1
    assert running.access.rater(f"2.{code}") is None
    assert study.Access(running.store.secret, TOKEN).rater(f"{number}.{code}") is None  # a new token ends old links


def test_joining_asks_for_the_token_where_there_is_one(tmp_path, capfd):
    with serving(tmp_path / "study.sqlite", make_study(2), token=TOKEN) as one:
        for wrong in ("", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
            with one.client(wrong) as client:
                assert client.post("/api/join", json={"name": "eve"}).status_code == 403
                assert client.get("/api/study").status_code == 403
        with one.client(TOKEN) as client:
            assert client.get("/api/study").json()["rater"] is None
            key = client.post("/api/join", json={"name": "anna"}).json()["key"]
            assert client.post("/api/join", json={"name": "ANNA"}).status_code == 400
            assert client.post("/api/next", json={"tab": "0" * 32}).status_code == 403  # the token is nobody's key
        with one.client(key) as client:
            assert client.get("/api/study").json()["rater"] == "anna"
            assert client.post("/api/next", json={"tab": "0" * 32}).json()["total"] == 2
        with one.client() as client:
            client.get(f"/api/study?token={TOKEN}")
            client.get(f"/{TOKEN}")
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    assert key not in said.out + said.err
    for short in ("short", "with space" * 3, "ümlaut-that-is-long-enough", "tab\t" * 8):
        with pytest.raises(InputError, match="token"):
            study.Access(b"secret", short)
    assert study.Access.with_token(b"secret").token == study.Access.with_token(b"secret").token


def test_other_pages_and_other_names_are_refused(running):
    key = running.key("ben")
    port = running.address.port
    with running.client(key) as client:
        for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", "null", "", f"http://evil:{port}"):
            refused = client.post("/api/next", json={"tab": "0" * 32}, headers={"Origin": origin})
            assert refused.status_code == 403, origin
        assert client.post("/api/next", json={"tab": "0" * 32}).status_code == 200
        # A web site whose name was made to point here asks under its own name.
        for host in ("evil.example", f"evil.example:{port}", "", "[", "127.0.0.1.evil.example"):
            assert client.get("/api/study", headers={"Host": host}).status_code in (400, 403), host
        for host in (f"localhost:{port}", "127.0.0.1:9999"):  # through a tunnel the port is another
            assert client.get("/api/study", headers={"Host": host}).status_code == 200
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.post("/api/next", json={"tab": "0" * 32}).status_code == 403  # no origin at all


def test_every_answer_forbids_scripts_frames_and_other_addresses(running):
    with running.client() as client:
        for path, status in (("/", 200), ("/study.js", 200), ("/none", 404), ("/api/study", 403), ("/api/next", 405)):
            answer = client.get(path)
            assert answer.status_code == status
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        page = client.get("/").text
        assert "http://" not in page
        assert "https://" not in page
        assert "style=" not in page
        assert "onclick" not in page


DEEP = b"[" * 40_000


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (DEEP, 400), (b"\xff\xfe", 400),
        (b'{"tab": 1}', 400), (b'{"tab": "../../etc"}', 400), (b" " * 70_000, 413),
    ],
    ids=["empty", "cut", "list", "null", "deep", "bytes", "number", "path", "large"],
)  # fmt: skip
def test_malformed_bodies_are_refused_and_the_server_lives(running, content, status):
    with running.client(running.key("anna")) as client:
        answer = client.post("/api/next", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        assert answer.json()["error"]
        assert client.get("/api/study").status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"}, {"id": None}, {"tab": []}, {"position": "1"}, {"position": True}, {"position": -1},
        {"position": 2**80}, {"position": 2**31}, {"seconds": "1"}, {"seconds": -1}, {"seconds": 1e300},
        {"comment": "x" * 4001}, {"comment": None}, {"comment": "\ud800"}, {"preferences": None},
        {"preferences": {"overall": ["first"]}}, {"preferences": {"overall": "FIRST"}}, {"revises": "x"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)  # fmt: skip
def test_fields_that_are_no_answer_are_refused(running, change):
    body = {**body_of({"position": 1, "first": "Better", "answer": None}), **change}
    with running.client(running.key("anna")) as client:
        headers = {"Content-Type": "application/json"}
        assert client.post("/api/answers", content=json.dumps(body), headers=headers).status_code == 400
        content = json.dumps(body).replace("1.5", "NaN") if "seconds" not in change else json.dumps(body)
        assert client.post("/api/answers", content=content, headers=headers).status_code == 400
    assert running.store.judgements() == []


def test_what_is_no_http_does_not_stop_the_server(running):
    port = running.address.port
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\0" * 1000,
                    b"POST /api/next HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
                    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000):  # fmt: skip
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(garbage)
    with running.client(running.key("anna")) as client:
        assert client.get("/api/study").status_code == 200
        for path in (
            "/../_app.py",
            "/%2e%2e/_app.py",
            "/study.js/../../_app.py",
            "/api/comparisons/99999999999999999999",
        ):
            assert client.get(path).status_code in (400, 404), path


def test_a_body_that_does_not_come_is_not_waited_for(running, monkeypatch):
    monkeypatch.setattr(study._app, "_BODY_TIMEOUT_S", 0.05)
    head = "POST /api/next HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 9\r\n"
    with socket.create_connection(("127.0.0.1", running.address.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + b'{"tab')
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_going_back_shows_only_what_was_answered(tmp_path):
    made = make_study(3, raters=("anna",))
    with serving(tmp_path / "study.sqlite", made) as one, one.client(one.key("anna")) as client:
        assert client.get("/api/comparisons/2").status_code == 404
        state = client.post("/api/next", json={"tab": "0" * 32}).json()
        body = body_of(state["comparison"], comment="why")
        state = client.post("/api/answers", json=body).json()
        back = client.get(f"/api/comparisons/{state['previous']}").json()["comparison"]
        assert back["answer"] == {"id": body["id"], "preferences": body["preferences"], "comment": "why"}
        changed = body_of(back, preferences={"overall": "tie"})
        assert client.post("/api/answers", json=changed).json()["comparison"]["position"] == 2
        assert client.post("/api/answers", json=body_of(back)).status_code == 409
    with study.Store(tmp_path / "study.sqlite") as store:
        assert [judgement.preferred for judgement in store.judgements()] == [None]


def test_messages_are_shown_as_messages(tmp_path):
    turns = [{"role": "user", "content": "Hello"}]
    pair = study.Pair(1, turns, (OURS, THEIRS), ("Hi", [{"role": "assistant", "content": "Go away"}]))
    made = study.Study(pairs=[pair, *make_pairs(1)], axes=study.read_axes(["overall"]), raters=("anna",))
    with serving(tmp_path / "study.sqlite", made) as one, one.client(one.key("anna")) as client:
        state = client.post("/api/next", json={"tab": "0" * 32}).json()
        if state["comparison"]["prompt"] != turns:
            state = client.post("/api/answers", json=body_of(state["comparison"])).json()
        shown = state["comparison"]
        assert shown["prompt"] == turns
        answers = [shown["first"], shown["second"]]
        assert sorted(answers, key=str) == ["Hi", [{"role": "assistant", "content": "Go away"}]]


def test_links_and_sockets():
    assert study.Address("127.0.0.1", 80).link("a.b") == "http://127.0.0.1:80/#a.b"
    assert study.Address("::1", 80).link() == "http://[::1]:80/"
    assert study.Address("::1", 80).local
    assert study.Address("localhost", 80).local
    assert not study.Address("0.0.0.0", 80).local
    assert study.Address("0.0.0.0", 80).names is None
    assert not study.Address("example.org", 80).local
    behind = study.Address("127.0.0.1", 80, "https://study.example.org/")
    assert behind.link("k") == "https://study.example.org/#k"
    assert "study.example.org" in behind.names
    site = "https://study.example.org"
    for wrong in ("study.example.org", f"{site}/a", f"{site}?a=1", f"{site}/#a", "https://me@a.org", "https://a.org:x"):
        with pytest.raises(InputError, match="--public-url"):
            study.Address("127.0.0.1", 80, wrong)
    with study.bind("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: Address already in use"):
            study.bind("127.0.0.1", port)
    for host, port in (("127.0.0.1", 70000), ("no.such.host.invalid", 80)):
        with pytest.raises(InputError):
            study.bind(host, port)


@pytest.mark.parametrize("url", ["https://study.example", "https://Study.example:443/"])
def test_behind_a_proxy_its_own_name_counts(tmp_path, url):
    with serving(tmp_path / "study.sqlite", make_study(1, raters=("anna",)), public_url=url) as one:
        headers = {"Origin": "https://study.example", "Authorization": f"Bearer {one.key('anna')}"}
        with httpx.Client(base_url=one.url, headers=headers) as client:
            assert client.post("/api/next", json={"tab": "0" * 32}).status_code == 200
            assert client.get("/api/study", headers={"Host": "study.example"}).status_code == 200
