"""Model families: one file each, a reading of Hugging Face's config.json and a table of weight names, both ways.

A new family is a new file and a line here; no model code lives in this package.
"""

from jaxalign.models.families import gemma2, gemma3, gpt2, gpt_neox, gptj, llama, mistral, opt, phi3, qwen2, qwen3
from jaxalign.models.families._family import Family, Weight

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, gemma2.FAMILY, gemma3.FAMILY, phi3.FAMILY,
        gpt2.FAMILY, gpt_neox.FAMILY, gptj.FAMILY, opt.FAMILY,
    )
}  # fmt: skip
"""By ``model_type`` in config.json, which is also ``ModelConfig.family``."""

WRAPPED: dict[str, Family] = {family.wrapper.model_type: family for family in FAMILIES.values() if family.wrapper}
"""By ``model_type`` of a larger model: the family of the language model inside, which alone is read."""

__all__ = ["FAMILIES", "WRAPPED", "Family", "Weight"]
