"""Who may do what: a key for each rater, and where it is asked for a token to join with."""

import base64
import hashlib
import hmac

from jaxalign.errors import InputError

__all__ = ["Access"]

_SHORTEST_TOKEN = 16


class Access:
    """Keys and the token, compared in constant time.

    A rater's key is his id and an HMAC-SHA256 of it under the store's secret: nothing to look up, nothing to guess.
    Both travel in the part of a link behind "#", which browsers do not send, and from there in a header.
    """

    def __init__(self, secret: bytes, token: str | None = None) -> None:
        """``token``: needed to join by name, and part of every key, so that a new one ends all links given out; None:
        joining needs none. Raises ``InputError`` for a token that is short or cannot stand in a header.
        """
        if token is not None and not (len(token) >= _SHORTEST_TOKEN and token.isascii() and token.isprintable()):
            raise InputError(f"the study's token needs at least {_SHORTEST_TOKEN} characters, all of them plain ASCII")
        if token is not None and " " in token:
            raise InputError("the study's token has a space in it")
        self._secret, self.token = secret, token

    @classmethod
    def with_token(cls, secret: bytes) -> "Access":
        """With a token of its own, the same whenever the same store is served."""
        return cls(secret, _code(secret, b"token"))

    def key(self, rater: int) -> str:
        """What a rater's link ends with."""
        return f"{rater}.{_code(self._secret, f'rater {rater} {self.token or str()}'.encode())}"

    def rater(self, credential: str) -> int | None:
        """Whose key this is; None: nobody's."""
        number = credential.partition(".")[0]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return None
        return int(number) if _same(credential, self.key(int(number))) else None

    def may_join(self, credential: str) -> bool:
        """Whether somebody who shows this (nothing: "") may join by name."""
        return self.token is None or _same(credential, self.token)


def _code(secret: bytes, message: bytes) -> str:
    """128 bits as 22 letters that may stand in a link."""
    digest = hmac.new(secret, message, hashlib.sha256).digest()[:16]
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
