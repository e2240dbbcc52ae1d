"""Chain of Hindsight as the paper has it, as its released code has it, and its baselines: settings, not recipes."""

from typing import Any

__all__ = ["HINDSIGHT_PRESETS"]

HINDSIGHT_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "structures": ("pn", "np"), "templates": "paper", "forget_max_ratio": 0.05, "pretraining_weight": 1.5,
        "batch_size": 512, "pretraining_batch_size": 2048, "max_length": 1024,
    },
    "released": {
        "structures": ("pn", "np"), "templates": "released", "forget_max_ratio": 0.0, "pretraining_weight": 0.01,
        "mark_turns": "all", "repeat_prompt": "dialogues", "max_length": 1024,
    },
    "sft": {"structures": ("p",), "markers": "neutral", "forget_max_ratio": 0.0},
    "sft-all": {"structures": ("p", "n"), "emit": "each", "markers": "neutral", "forget_max_ratio": 0.0},
    "c-sft": {"structures": ("p", "n"), "emit": "each", "forget_max_ratio": 0.0},
    "sft-u": {
        "structures": ("p", "n"), "emit": "each", "markers": "neutral", "forget_max_ratio": 0.0,
        "unlikelihood_weight": 0.5,
    },
}  # fmt: skip
"""Settings that differ from the defaults.

"paper" is the method of Liu et al. 2023 (arXiv 2302.02676, section 2 and appendix), "released" what its code does
instead. The baselines are the paper's: supervised fine-tuning on the best output of each record ("sft"), on all
("sft-all"), on all with words of their quality before them ("c-sft"), and on the best with the others made less likely
("sft-u"; alpha is chosen of .05, .1, .5 and 1). Give each the same ``pretraining_dataset``: the paper regularises all
of them alike.
"""
