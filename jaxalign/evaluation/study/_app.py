"""The page's server: what a browser may ask, and what it is told. No name of a system is in any answer."""

import importlib.resources
import json
import math
import re
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError
from jaxalign.evaluation.study._access import Access
from jaxalign.evaluation.study._guard import App, Guard
from jaxalign.evaluation.study._store import Answer, Conflict, Store, View
from jaxalign.evaluation.study._tabs import Tabs

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["MAX_COMMENT", "make_app"]

MAX_BODY_BYTES = 64 * 1024
MAX_COMMENT = 4000
_BODY_TIMEOUT_S = 20.0
_WEEK_S = 7 * 24 * 3600.0
_ID = re.compile(r"[0-9a-f]{32}")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/study.css": ("study.css", "text/css; charset=utf-8"),
    "/study.js": ("study.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class _Refused(Exception):
    """An answer other than what was asked for: an HTTP status and one line for the rater."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def make_app(
    store: Store, access: Access, *, hosts: Collection[str] | None = None, public_url: str | None = None
) -> App:
    """The study as an ASGI app. ``hosts`` and ``public_url`` as in ``Guard``; whoever serves it closes the store."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    page = importlib.resources.files(__package__) / "page"
    files = {path: ((page / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
    tabs = Tabs()

    async def file(request: "Request") -> "Response":
        content, kind = files[request.scope["path"]]
        return Response(content, media_type=kind)

    def endpoint(answer: Callable[[Any, dict[str, Any]], Any]) -> Callable[["Request"], Awaitable["Response"]]:
        """An endpoint: ``answer(request, body)`` in a thread, for it may wait for the disk."""

        async def respond(request: "Request") -> "Response":
            try:
                body = {} if request.method in ("GET", "HEAD") else await _body(request)
                return JSONResponse(await run_in_threadpool(answer, request, body))
            except _Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)
            except Conflict as conflict:
                return JSONResponse({"error": str(conflict)}, 409)
            except InputError as error:
                return JSONResponse({"error": str(error)}, 400)

        return respond

    def rater_of(request: "Request") -> int:
        rater = access.rater(_credential(request))
        if rater is None or rater not in store.raters():
            raise _Refused(403, "this link is not valid: open the one that you were sent")
        return rater

    def state(rater: int, view: View | None) -> dict[str, Any]:
        done, total = store.progress(rater)
        previous = view.previous if view else store.last_answered(rater)
        return {"done": done, "total": total, "previous": previous, "comparison": _shown(view) if view else None}

    def next_state(rater: int, tab: str) -> dict[str, Any]:
        position = store.next_position(rater, tabs.elsewhere(rater, tab))
        tabs.show(rater, tab, position)
        return state(rater, store.view(rater, position))

    def study(request: "Request", _: dict[str, Any]) -> dict[str, Any]:
        credential = _credential(request)
        name = store.raters().get(access.rater(credential) or 0)
        if name is None and (store.study.raters or not access.may_join(credential)):
            raise _Refused(403, "this page needs the link that you were sent, all of it")
        done, total = store.progress(access.rater(credential) or 0) if name else (0, 0)
        return {
            "title": store.study.title,
            "instructions": store.study.instructions,
            "axes": [{"name": axis.name, "question": axis.question, "hint": axis.hint} for axis in store.study.axes],
            "ties": store.study.ties,
            "max_comment": MAX_COMMENT,
            "rater": name,
            "done": done,
            "total": total,
        }

    def join(request: "Request", body: dict[str, Any]) -> dict[str, Any]:
        if store.study.raters or not access.may_join(_credential(request)):
            raise _Refused(403, "this page needs the link that you were sent, all of it")
        return {"key": access.key(store.join(_text(body, "name", 200)))}

    def go_on(request: "Request", body: dict[str, Any]) -> dict[str, Any]:
        return next_state(rater_of(request), _id(body, "tab"))

    def comparison(request: "Request", _: dict[str, Any]) -> dict[str, Any]:
        rater = rater_of(request)
        number = request.path_params["position"]
        view = store.view(rater, int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
        if view is None or view.answer is None:  # only what was answered can be gone back to
            raise _Refused(404, "no such comparison in your list")
        return state(rater, view)

    def answer(request: "Request", body: dict[str, Any]) -> dict[str, Any]:
        rater, tab = rater_of(request), _id(body, "tab")
        preferences = body.get("preferences")
        if not isinstance(preferences, dict) or not all(isinstance(word, str) for word in preferences.values()):
            raise _Refused(400, "preferences: expected an object of axis -> answer")
        said = Answer(
            id=_id(body, "id"),
            position=int(_number(body, "position", 2**31)),
            preferences=preferences,
            seconds=_number(body, "seconds", _WEEK_S),
            comment=_text(body, "comment", MAX_COMMENT),
            revises=None if body.get("revises") is None else _id(body, "revises"),
        )
        store.submit(rater, said)
        return next_state(rater, tab)

    def leave(request: "Request", body: dict[str, Any]) -> dict[str, Any]:
        tabs.show(rater_of(request), _id(body, "tab"), None)
        return {}

    async def unknown(request: "Request", _: Exception) -> "Response":
        return JSONResponse({"error": "no such page"}, 404)

    routes = [Route(path, file) for path in files]
    routes += [
        Route("/api/study", endpoint(study)),
        Route("/api/comparisons/{position}", endpoint(comparison)),
        *(
            Route(f"/api/{name}", endpoint(handler), methods=["POST"])
            for name, handler in (("join", join), ("next", go_on), ("answers", answer), ("leave", leave))
        ),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: unknown}), hosts=hosts, public_url=public_url)


def _shown(view: View) -> dict[str, Any]:
    """A pair as this rater sees it. The place in his own list is its only number: no other says anything."""
    first, second = view.pair.outputs[::-1] if view.flipped else view.pair.outputs
    said = view.answer
    return {
        "position": view.position,
        "prompt": view.pair.prompt,
        "first": first,
        "second": second,
        "answer": said and {"id": said.id, "preferences": dict(said.preferences), "comment": said.comment},
    }


def _credential(request: "Request") -> str:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    return credential.strip() if scheme.casefold() == "bearer" else ""


async def _body(request: "Request") -> dict[str, Any]:
    """The JSON object that was sent, within limits of size and time."""
    import anyio
    from starlette.requests import ClientDisconnect

    if request.headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
        raise _Refused(415, "expected JSON")
    content = bytearray()
    try:
        with anyio.fail_after(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY_BYTES:
                    raise _Refused(413, f"more than {MAX_BODY_BYTES} bytes were sent")
    except (TimeoutError, ClientDisconnect):
        raise _Refused(408, "the request did not arrive whole") from None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise _Refused(400, "this is not JSON") from None
    if not isinstance(body, dict):
        raise _Refused(400, "expected a JSON object")
    return body


def _id(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _Refused(400, f"{name}: expected 32 hexadecimal digits")
    return value


def _text(body: dict[str, Any], name: str, longest: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise _Refused(400, f"{name}: expected a text of at most {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Refused(400, f"{name}: half of a surrogate pair, not valid text") from None
    return value


def _number(body: dict[str, Any], name: str, largest: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
        raise _Refused(400, f"{name}: expected a number from 0 to {largest:g}")
    return value if math.isfinite(value) else 0.0
