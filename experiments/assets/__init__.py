"""Readers of real weights and real text that lie inside ordinary packages (the ``demo`` extra), read in place.

Nothing here is part of the library: no text and no weights are copied into this repository.
"""
