"""The human study: people compare two outputs side by side, on a page of their own browser.

Here live the comparisons and their blind, balanced assignment (pure functions of a seed), the store (one SQLite file
that holds the whole study), the page with its small server, and the export. What may not live here: anything that
samples or trains; and no network but the page's own.

    pairs, _ = read_pairs("outputs.jsonl")
    with Store.open("study.sqlite", Study(pairs=pairs, axes=read_axes(["accuracy", "coverage"]))) as store:
        serve(store, Access(store.secret), Address("127.0.0.1", 8765), bind("127.0.0.1", 8765))
    export_study("study.sqlite", "results")
"""

from jaxalign.evaluation._output_pairs import Pair, read_pairs
from jaxalign.evaluation.study._access import Access
from jaxalign.evaluation.study._app import make_app
from jaxalign.evaluation.study._assignment import choose, is_flipped, plan, rater_order
from jaxalign.evaluation.study._axes import Axis, read_axes
from jaxalign.evaluation.study._export import Exported, export_study
from jaxalign.evaluation.study._server import Address, bind, make_server, serve
from jaxalign.evaluation.study._store import Answer, Conflict, Judgement, Store, View
from jaxalign.evaluation.study._study import Study, read_raters

__all__ = [
    "Access",
    "Address",
    "Answer",
    "Axis",
    "Conflict",
    "Exported",
    "Judgement",
    "Pair",
    "Store",
    "Study",
    "View",
    "bind",
    "choose",
    "export_study",
    "is_flipped",
    "make_app",
    "make_server",
    "plan",
    "rater_order",
    "read_axes",
    "read_pairs",
    "read_raters",
    "serve",
]
