"""``jaxalign judge serve`` and ``export``: flags, links, a server that is killed, records that the recipes read."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jaxalign.cli import _judge_serve
from jaxalign.cli._flags import parse
from jaxalign.errors import InputError
from jaxalign.evaluation import study
from tests.evaluation.study.running import body_of, new_id

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "serve": (_judge_serve.ServeConfig, _judge_serve.run_serve),
    "export": (_judge_serve.ExportConfig, _judge_serve.run_export),
}


def judge(name, *flags):
    """``jaxalign judge NAME --flags``."""
    config, run = COMMANDS[name]
    return run(parse(config, [str(flag) for flag in flags], program=f"jaxalign judge {name}", summary=""))


@pytest.fixture
def outputs(tmp_path):
    path = tmp_path / "outputs.jsonl"
    rows = [
        {"prompt": f"Prompt {row}", "outputs": {"dpo": f"Better {row}", "sft": f"Worse {row}"}} for row in range(1, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def serve():
    """Start a server in a process of its own; returns it, and what it says up to its last line of greeting."""
    started = []

    def start(*flags, **environment):
        program = f"from tests.cli.test_judge_serve import judge; judge('serve', *{[str(flag) for flag in flags]!r})"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Every answer"):
                return process, "".join(said)
        raise AssertionError("".join(said))

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def client_of(said, name):
    url, key = re.search(rf"^{name} +(http://[^/]+)/#(\S+)", said, re.MULTILINE).groups()
    return httpx.Client(base_url=url, headers={"Origin": url, "Authorization": f"Bearer {key}"}, timeout=30)


def test_a_killed_server_has_lost_nothing_and_goes_on(outputs, tmp_path, serve):
    flags = ("--pairs", outputs, "--store", tmp_path / "study.sqlite", "--raters", "anna,ben", "--port", 0)
    process, first = serve(*flags)
    assert "5 pairs, all of them by every rater; overall" in first
    with client_of(first, "anna") as client:
        state = client.post("/api/next", json={"tab": "0" * 32}).json()
        body = body_of(state["comparison"])
        state = client.post("/api/answers", json=body).json()
        last = body_of(state["comparison"])
        assert client.post("/api/answers", json=last).status_code == 200
        process.kill()  # the moment it is answered, it is on the disk
        process.wait()
    process, second = serve(*flags)
    links = re.compile(r"#(\S+)")
    assert links.findall(first) == links.findall(second)  # raters' links are the same
    with client_of(second, "anna") as client:
        # Whose answer got lost on the way sends it again, and it counts once.
        state = client.post("/api/answers", json=last).json()
        assert (state["done"], state["total"]) == (2, 5)
        while state["comparison"] is not None:
            state = client.post("/api/answers", json=body_of(state["comparison"])).json()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == "stopped; the same command goes on\n"
    with study.Store(tmp_path / "study.sqlite") as store:
        assert [store.progress(rater) for rater in (1, 2)] == [(5, 5), (0, 5)]
        assert [judgement.preferred for judgement in store.judgements()] == [0] * 5


def test_a_wider_address_asks_for_a_token(outputs, tmp_path, serve):
    _, said = serve("--pairs", outputs, "--store", tmp_path / "study.sqlite", "--host", "0.0.0.0", "--port", 0)
    port, token = re.search(r"^to join +http://[^/]+:(\d+)/#(\S{22,})$", said, re.MULTILINE).groups()
    url = f"http://127.0.0.1:{port}"
    for credential, status in ((token, 200), ("x" * 22, 403), ("", 403)):
        headers = {"Origin": url, **({"Authorization": f"Bearer {credential}"} if credential else {})}
        assert httpx.get(f"{url}/api/study", headers=headers).status_code == status
        joined = httpx.post(f"{url}/api/join", headers=headers, json={"name": new_id()})
        assert joined.status_code == status


def test_a_token_of_ones_own_is_a_files_or_the_environments(outputs, tmp_path):
    config = _judge_serve.ServeConfig(pairs=outputs, store=tmp_path / "study.sqlite")
    assert _judge_serve._token(config, {}) is None
    assert _judge_serve._token(config, {"JAXALIGN_STUDY_TOKEN": "from-the-environment"}) == "from-the-environment"
    (tmp_path / "token").write_text("from-the-file\n")
    config = dataclasses.replace(config, token_file=tmp_path / "token")
    assert _judge_serve._token(config, {"JAXALIGN_STUDY_TOKEN": "from-the-environment"}) == "from-the-file"


def test_the_links_are_said(outputs, tmp_path, capsys):
    config = _judge_serve.ServeConfig(pairs=outputs, store=tmp_path / "study.sqlite", ratings_per_item=2)
    made, same = _judge_serve._study(config)
    address = study.Address("127.0.0.1", 8765)
    with study.Store.open(config.store, made) as store:
        store.join("anna")
        access = _judge_serve._access(store.secret, address, None)
        _judge_serve._say(config, store, address, access, same)
        assert capsys.readouterr().out.splitlines() == [
            f"{config.store}: 5 pairs, 2 raters each; overall",
            "to join  http://127.0.0.1:8765/",  # on this machine alone it asks for a name only
            f"anna  http://127.0.0.1:8765/#{access.key(1)}  0 of 5",
            "Every answer is stored at once. Ctrl+C stops; the same command goes on.",
        ]


def test_an_export_before_anyone_has_answered_says_how_to_go_on(outputs, tmp_path, capsys):
    store = tmp_path / "study.sqlite"
    pairs, _ = study.read_pairs(outputs)
    made = study.Study(pairs=pairs, axes=study.read_axes(["overall"]), raters=("anna",))
    study.Store.open(store, made).close()
    judge("export", "--store", store, "--output-dir", tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Nobody has answered yet: the `jaxalign judge serve` that began the study goes on and prints the links"
    ]


def test_the_recipes_read_what_is_exported(outputs, tmp_path, model, shell, capsys):
    store = tmp_path / "study.sqlite"
    pairs, _ = study.read_pairs(outputs)
    made = study.Study(pairs=pairs, axes=study.read_axes(["overall"]), raters=("anna",))
    with study.Store.open(store, made) as opened:
        for position in range(1, 6):
            better = "second" if opened.view(1, position).flipped else "first"
            opened.submit(1, study.Answer(id=new_id(), position=position, preferences={"overall": better}))
    judge("export", "--store", store, "--output-dir", tmp_path / "out")
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 5 judgements; 5 records on overall, 0 pairs without a majority left out; "
        "judgements.csv, preferences.jsonl, verdicts.jsonl\n"
        f"Tables and figures: jaxalign evaluate --verdicts {tmp_path / 'out' / 'verdicts.jsonl'} "
        f"--output-dir {tmp_path / 'out' / 'report'}\n"
    )
    status, output, errors = shell("judge", "export", "--store", store, "--output", tmp_path / "out")  # its other name
    assert (status, errors) == (0, "")
    status, output, errors = shell(*output.split("jaxalign ")[1].split())
    assert (status, errors) == (0, "")
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    records = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    assert {(record["chosen"][:6], record["rejected"][:5]) for record in records} == {("Better", "Worse")}
    for recipe in ("reward", "dpo"):
        status, output, errors = shell(
            "preview", recipe, "--model", model, "--dataset", tmp_path / "out" / "preferences.jsonl"
        )
        assert status == 0, errors
        assert "Better 1" in output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--axes", "kindness"), "--axes: 'kindness'"),
        (("--raters", "anna,,ben"), "a rater's name has"),
        (("--ratings-per-item", "3", "--raters", "anna,ben"), "--ratings-per-item: 3 ratings"),
        (("--ours", "base"), "outputs.jsonl: row 1: no output of 'base' (--ours)"),
        (("--instructions", "none.txt"), "--instructions: none.txt: No such file"),
        (("--token-file", "none.txt"), "--token-file: none.txt: No such file"),
        (("--port", "70000"), "--port: expected 0 to 65535"),
        (("--title", ""), "--title: is empty"),
        (("--public-url", "example.org"), "--public-url: expected"),
        (("--pairs", "none.jsonl"), "none.jsonl: no such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_line_that_names_the_flag(outputs, tmp_path, flags, words):
    with pytest.raises(InputError) as caught:
        judge("serve", "--pairs", outputs, "--store", tmp_path / "study.sqlite", "--port", 0, *flags)
    assert words in str(caught.value)


def test_a_short_token_is_refused(outputs, tmp_path):
    config = _judge_serve.ServeConfig(pairs=outputs, store=tmp_path / "study.sqlite", port=0)
    with pytest.raises(InputError, match="at least 16 characters"):
        _judge_serve.run_serve(config, environment={"JAXALIGN_STUDY_TOKEN": "short"})


@pytest.mark.parametrize(
    ("address", "needed"),
    [
        (study.Address("127.0.0.1", 80), False),
        (study.Address("::1", 80), False),
        (study.Address("localhost", 80), False),
        (study.Address("127.0.0.1", 80, "https://study.example"), True),
        (study.Address("0.0.0.0", 80), True),
        (study.Address("192.168.1.2", 80), True),
        (study.Address("a-name.example", 80), True),
    ],
    ids=lambda value: value.link() if isinstance(value, study.Address) else "",
)
def test_a_token_is_made_where_others_can_come(address, needed):
    made = _judge_serve._access(b"secret", address, None)
    assert made.may_join("") is not needed
    assert made.may_join(made.token or "")
    given = _judge_serve._access(b"secret", address, "a-token-of-our-own")
    assert given.token == "a-token-of-our-own"
    assert not given.may_join("")


def test_without_the_server_the_extra_is_named(outputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(InputError, match=r"the page needs starlette: pip install 'jaxalign\[study\]'"):
        judge("serve", "--pairs", outputs, "--store", tmp_path / "study.sqlite")
    assert not (tmp_path / "study.sqlite").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_its_help(name, capsys):
    with pytest.raises(SystemExit):
        judge(name, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "The study's file" in said
    assert "--ours" in said
