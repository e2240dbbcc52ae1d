"""Small studies, and real servers of them on the loopback address."""

import contextlib
import secrets
import threading
from dataclasses import dataclass

import httpx

from jaxalign.evaluation import study

# Names that stand in no text: wherever they turn up, the study is not blind.
OURS, THEIRS = "system-kestrel", "system-magpie"


def make_pairs(count):
    """Pairs whose texts say which system wrote them, in words that raters do not know."""
    return [
        study.Pair(row, f"Prompt {row}", (OURS, THEIRS), (f"Better {row}", f"Worse {row}"))
        for row in range(1, count + 1)
    ]


def make_study(pairs=4, axes=("overall",), **settings):
    return study.Study(pairs=make_pairs(pairs), axes=study.read_axes(axes), **settings)


@dataclass(frozen=True)
class Running:
    """A study that is being served."""

    store: study.Store
    access: study.Access
    address: study.Address

    @property
    def url(self):
        return self.address.link().rstrip("/")

    def key(self, name):
        """Of the rater of this name."""
        return self.access.key(next(rater for rater, known in self.store.raters().items() if known == name))

    def link(self, name):
        return self.address.link(self.key(name))

    def headers(self, key=""):
        return {"Origin": self.url, **({"Authorization": f"Bearer {key}"} if key else {})}

    def client(self, key=""):
        return httpx.Client(base_url=self.url, headers=self.headers(key), timeout=30)


@contextlib.contextmanager
def serving(path, made, *, token=None, public_url=None):
    """Serve a study in a thread."""
    with study.Store.open(path, made) as store, study.bind("127.0.0.1", 0) as listening:
        address = study.Address("127.0.0.1", listening.getsockname()[1], public_url)
        access = study.Access(store.secret, token)
        server = study.make_server(store, access, address)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(store, access, study.Address("127.0.0.1", address.port))
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def new_id():
    return secrets.token_hex(16)


def body_of(comparison, **changes):
    """What a rater's page sends who prefers the better one, on the axis "overall"."""
    preference = "first" if isinstance(comparison["first"], str) and comparison["first"].startswith("B") else "second"
    return {
        "id": new_id(),
        "tab": "0" * 32,
        "position": comparison["position"],
        "preferences": {"overall": preference},
        "seconds": 1.5,
        "comment": "",
        "revises": comparison["answer"] and comparison["answer"]["id"],
        **changes,
    }
