"""What happened to the rows: read, skipped by reason, cut by policy."""

from __future__ import annotations

import collections
import dataclasses

__all__ = ["Counters"]


@dataclasses.dataclass
class Counters:
    """Counts in rows (records) unless named otherwise; filled by ``load_records`` and ``build_examples``."""

    rows_read: int = 0
    """Rows seen in the source, good or bad, without blank lines."""
    examples: int = 0
    """Examples built."""
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Rows left out, by reason."""
    truncated: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Prompts and answers cut, by policy: "prompt: keep_end", "completion: cut", in sequences."""

    def as_dict(self) -> dict[str, int]:
        """Flat numbers for a log: ``{"rows_read": 9, "skipped: invalid JSON": 1, ...}``."""
        flat = {"rows_read": self.rows_read, "examples": self.examples}
        flat.update({f"skipped: {reason}": count for reason, count in sorted(self.skipped.items())})
        flat.update({f"truncated: {policy}": count for policy, count in sorted(self.truncated.items())})
        return flat

    def summary(self) -> str:
        """One readable line of what :meth:`as_dict` holds."""
        return ", ".join(f"{name} {count}" for name, count in self.as_dict().items())
