"""Supervised fine-tuning: maximise the likelihood of demonstrations.

    L = -sum_t log pi(y_t | x, y_<t) / number of supervised tokens           nats a token

Records: ``text``, ``messages``, or ``prompt`` + ``completion``. Of preference records, ``answer="chosen"`` takes the
preferred answer: Preferred-FT (Rafailov et al. 2023, arXiv 2305.18290, section 6).
"""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign import data
from jaxalign.data import ExampleKind
from jaxalign.recipes._config import RunConfig
from jaxalign.recipes._likelihood import likelihood_objective
from jaxalign.recipes._run import Tokenise, read_examples, run_recipe
from jaxalign.training import OptimizerConfig

__all__ = ["SFTConfig", "load", "run"]


@dataclass(frozen=True, kw_only=True)
class SFTConfig(RunConfig):
    """Fine-tune on demonstrations."""

    answer: Literal["completion", "chosen", "rejected"] = "completion"
    """Of preference records: which answer to learn. Other records have one."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, warmup_steps=10, clip_norm=1.0)
    )
    """AdamW, linear warm-up, then constant, so that a longer run goes on where a shorter one stopped."""


def load(config: SFTConfig) -> Tokenise:
    """Read the records; the result makes examples of them. Raises ``InputError``."""
    kind: ExampleKind | None = None if config.answer == "completion" else config.answer
    return read_examples(
        config,
        lambda records, tokenizer: data.build_examples(
            records, tokenizer, kind=kind, truncation=config.truncation, on_bad_row=config.on_bad_row
        ),
    )


def run(config: SFTConfig) -> None:
    """Load, tokenise, train, write ``output_dir/final``. Raises ``InputError`` for what is wrong with the input."""
    run_recipe(config, lambda: load(config), likelihood_objective, title="sft")
