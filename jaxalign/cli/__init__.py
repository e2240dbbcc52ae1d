"""The shell: ``jaxalign COMMAND --flags``. Parses, calls a recipe, prints; no method lives here.

A command's config is the recipe's own frozen dataclass, so flags, defaults and help are written once, there.
"""

from jaxalign.cli._ending import complain, end, said_once
from jaxalign.cli._main import main
from jaxalign.cli._preview import show_examples

__all__ = ["complain", "end", "main", "said_once", "show_examples"]
