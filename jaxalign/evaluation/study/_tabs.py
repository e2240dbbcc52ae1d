"""Which pair each open tab of a rater shows, so that two tabs get different ones."""

import threading
import time

__all__ = ["Tabs"]

_REMEMBERED_S = 15 * 60
_MOST_TABS = 16


class Tabs:
    """Held in memory only: forgetting it costs at most that two tabs show the same pair, which the store settles."""

    def __init__(self) -> None:
        self._shown: dict[int, dict[str, tuple[int, float]]] = {}  # rater -> tab -> (position, when)
        self._lock = threading.Lock()

    def elsewhere(self, rater: int, tab: str) -> set[int]:
        """The positions that the rater's other tabs show."""
        with self._lock:
            since = time.monotonic() - _REMEMBERED_S
            tabs = self._shown.get(rater, {})
            return {position for other, (position, when) in tabs.items() if other != tab and when > since}

    def show(self, rater: int, tab: str, position: int | None) -> None:
        """The tab shows this position now; None: it shows none, or is closed."""
        with self._lock:
            tabs = self._shown.setdefault(rater, {})
            tabs.pop(tab, None)
            if position is not None:
                tabs[tab] = (position, time.monotonic())
            while len(tabs) > _MOST_TABS:  # the one unheard of for longest
                del tabs[next(iter(tabs))]
