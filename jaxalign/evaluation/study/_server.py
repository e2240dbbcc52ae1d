"""Serve a study: a socket, the links, and a server that runs until it is stopped."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from jaxalign.errors import InputError
from jaxalign.evaluation.study._access import Access
from jaxalign.evaluation.study._app import make_app
from jaxalign.evaluation.study._store import Store

if TYPE_CHECKING:
    import uvicorn

__all__ = ["Address", "bind", "make_server", "serve"]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a study is served."""

    host: str
    port: int
    public_url: str | None = None
    """What links begin with, where another server stands before this one; None: this host and port."""

    def __post_init__(self) -> None:
        if self.public_url is not None and not _is_origin(self.public_url):
            raise InputError(f"--public-url: expected such as https://study.example.org, got {self.public_url!r}")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names it may be asked under; None: any, for there a token is asked for."""
        if not self.local:
            return None
        public = urlsplit(self.public_url).hostname if self.public_url else None
        return (*_LOOPBACK_NAMES, self.host, *([public] if public else []))

    def link(self, key: str = "") -> str:
        """A page's address; ``key`` stands behind "#", where browsers keep it to themselves."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        own = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        return f"{(self.public_url or own).rstrip('/')}/{'#' + quote(key) if key else ''}"


def _is_origin(url: str) -> bool:
    """Scheme, host and perhaps a port, and nothing that a link's "/#key" could not follow."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - refuses what is none
    except ValueError:
        return False
    plain = parts.path in ("", "/") and not set("?#@").intersection(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes one that is free. Raises ``InputError`` where it cannot be had."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(2048)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return listening


def make_server(store: Store, access: Access, address: Address) -> "uvicorn.Server":
    """The server of a study, for ``run(sockets=[...])`` of a socket that ``bind`` made."""
    import uvicorn

    app = make_app(store, access, hosts=address.names, public_url=address.public_url)
    config = uvicorn.Config(
        app,
        access_log=False,  # who answers when is nobody else's
        log_level="error",  # what scanners send is no news
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def serve(store: Store, access: Access, address: Address, listening: socket.socket) -> None:
    """Serve until interrupted (Ctrl+C, SIGTERM); requests that are under way are answered first."""
    make_server(store, access, address).run(sockets=[listening])
