"""Experiments: one file is one result of a paper. Run one as ``python -m experiments.NAME``.

Here live scripts that put the library's pieces together on real data, and what only they need: readers of packaged
weights and text (``experiments.assets``) and a cache of finished stages. Nothing in the library may import from here.
"""

import os

# Only the tokenizers of transformers are used: that it finds no PyTorch is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
