"""docs/models.md, from the registry of families, the table of parity cases and the tolerances.

Run from the repository root: ``python -m tests.models.families.table > docs/models.md``.
"""

from collections.abc import Iterable

from jaxalign.models.encoders import ENCODERS
from jaxalign.models.families import FAMILIES, Family
from tests.parity.cases import CASES
from tests.tolerances import FLOAT32, PARITY_HIDDEN, PARITY_LOGITS

INTRODUCTION = """\
# Models in, models out

<!-- Written by: python -m tests.models.families.table > docs/models.md -->

`models.load_pretrained` reads a Hugging Face folder or hub id, `models.save_pretrained` writes one. A family is one
file in `jaxalign/models/families`: what its `config.json` means, and a table of weight names that is walked both ways.
A field or tensor that is not understood is an error that names it: a model is never read as another one.

## Families

A classifier is the same model with a linear score head: a reward model.

"""

CHECKS = """
## What every case is put through

A case is a tiny random PyTorch model of Transformers with the features its name says, biases and norms random too
(`tests/parity/cases.py`; `make parity` runs them all):

| Check | Held to |
|---|---|
| hidden states after every layer, relative to their size | {hidden:g} |
| logits, relative to their size; with left and right padding too | {logits:g} |
| scores of a classifier | {logits:g} |
| prefill and cached decoding = the full forward pass | {ours:g} |
| padding and batch mates change nothing (other lengths beside a row: {ours:g}) | every bit |
| folder in, folder out: same tensor names, same values, float32 and bfloat16; same config | every bit |
| Transformers opens our folder: no missing and no unexpected weight; its logits are those of the original | every bit |
| a model initialised here opens there, logits | {logits:g} |
| a LoRA adapter of ours in PEFT, and PEFT's here, logits | {logits:g} |

## Spellings

`config.json` is written so that Transformers 4 and 5 read the same model: `rope_theta` and `rope_scaling` beside
`rope_parameters`, `sliding_window_pattern` and `max_window_layers` beside `layer_types`. Both are read; where a file
has both and they contradict each other, that is an error. (2026-11-23: Transformers 4.57.6 opened the folders of all
cases with Transformers 5's logits, bit for bit, but for one that it cannot express and refuses: a Phi-3 with an
`attention_factor` of its own.)

## Limits

- LongRoPE (Phi-3 128k, Phi-3.5, Phi-4-mini) is read for sequences up to the original context, 4096 tokens, where the
  short factors hold: that is `max_positions`. The long factors are kept and written back.
- Of a Gemma 3 with a vision tower the language model is read, and written as a `Gemma3ForCausalLM`. An adapter trained
  on it fits that language model (`jaxalign convert` writes it), not the folder with the tower: there PEFT finds other
  names.
- Dynamic NTK scaling, dual-chunk attention, layers without positions (SmolLM3), experts (Mixtral, Qwen MoE), quantised
  weights, pickled weights and code that comes with a model are refused, each with a sentence that says so.

## Encoders

Read only, as judges and rewards (`models.load_classifier`): {encoders}.
"""


def row(family: Family) -> str:
    """One line of the table of families."""
    types, read = [family.model_type], list(family.architectures)
    if family.wrapper is not None:
        types.append(family.wrapper.model_type)
        read += family.wrapper.architectures
    written = [family.architectures[0]]
    if family.classifier is not None:
        written.append(family.classifier)
        read.append(family.classifier)
    cells = (
        _code(types), "; ".join(family.covers), "; ".join(family.features), _code(CASES[family.model_type]),
        _code(read), _code(written), f"{PARITY_HIDDEN:g}, {PARITY_LOGITS:g}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The whole page."""
    header = (
        "`model_type`", "Published models", "Checked features", "Parity cases", "Architectures read",
        "Architectures written", "Tolerance: hidden states, logits",
    )  # fmt: skip
    table = f"| {' | '.join(header)} |\n{'|---' * len(header)}|\n" + "".join(
        row(family) for family in FAMILIES.values()
    )
    classifiers = {family.architectures[kind] for kind, family in ENCODERS.items()}
    encoders = ", ".join(f"`{name}`" for name in sorted(classifiers))
    numbers = {"hidden": PARITY_HIDDEN, "logits": PARITY_LOGITS, "ours": FLOAT32}
    return INTRODUCTION + table + CHECKS.format(encoders=encoders, **numbers)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
