"""Around every request: whose address it was sent to, which page sent it, and what a browser may do with the answer."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Texts of models are hostile: even if one became HTML, nothing in it could run, load, or be sent anywhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cache-control", "no-store"),
)


class Guard:
    """An ASGI app around another.

    - ``hosts``: names that a request may be sent to (the "Host" header); None: any. On a loopback address it is these
      that keep a web site whose own name was made to point here from reading the study.
    - A request that writes must come from a page of this address (the "Origin" header, which pages cannot forge).
    """

    def __init__(self, app: App, *, hosts: Collection[str] | None, public_url: str | None) -> None:
        self._app, self._hosts = app, hosts
        self._public = _origin_host(public_url) if public_url else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing here speaks anything else
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        reason = self._refusal(scope["method"], headers)
        if reason is None:
            await self._app(scope, receive, send_with_headers)
            return
        body = b'{"error": "' + reason.encode() + b'"}'
        content = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": content})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, method: str, headers: dict[str, str]) -> str | None:
        host = headers.get("host", "").casefold()
        if self._hosts is not None and _name(f"//{host}") not in self._hosts:
            return "this study is not served under that name"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin", "")
        sender = origin.partition("://")[2].casefold()
        if not sender or sender not in {host, self._public}:
            return "this did not come from the study's own page"
        return None


def _origin_host(url: str) -> str:
    """Host and port as browsers send them in "Origin": without the scheme's own port."""
    parts = urlsplit(url)
    return parts.netloc.casefold().removesuffix({"http": ":80", "https": ":443"}[parts.scheme])


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
