"""Model families: one file each, a reading of Hugging Face's config.json and a table of weight names, both ways.

A new family is a new file and a line here; no model code lives in this package.
"""

from jaxalign.models.families import gpt2, llama
from jaxalign.models.families._family import Family, Weight

FAMILIES: dict[str, Family] = {family.model_type: family for family in (llama.FAMILY, gpt2.FAMILY)}
"""By ``model_type`` in config.json, which is also ``ModelConfig.family``."""

__all__ = ["FAMILIES", "Family", "Weight"]
