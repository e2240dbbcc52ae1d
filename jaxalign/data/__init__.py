"""Records -> tokens + masks + positions: examples, rows, batches, packing, resumable iterators.

Everything here is NumPy: no model, no parameters, no device placement. Masks are made here, where the tokens are made,
and nowhere else.
"""

from jaxalign.data._batch import Batch, BatchShape, PairLayout, collate
from jaxalign.data._example import Example, ExtraSpec, extra_specs, unshare, with_extras

__all__ = [
    "Batch",
    "BatchShape",
    "Example",
    "ExtraSpec",
    "PairLayout",
    "collate",
    "extra_specs",
    "unshare",
    "with_extras",
]
