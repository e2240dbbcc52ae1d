"""``jaxalign preview RECIPE``: the tokens a recipe makes of its records and which of them it learns, before it trains.

On a terminal what is learnt stands out by its style, in a pipe it stands inside ⟦ ⟧.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from jaxalign.data import Example

__all__ = ["RECIPES", "PreviewFlags", "config_of", "run", "show_examples", "usage"]

RECIPES = ("sft", "dpo", "reward", "hindsight", "ppo")

# (supervised, special) -> how a terminal shows it.
STYLES = {
    (True, False): "bold green",
    (True, True): "bold reverse green",
    (False, False): "dim",
    (False, True): "dim reverse",
}
TITLE = "bold cyan"


@dataclass(frozen=True, kw_only=True)
class PreviewFlags:
    """What a preview asks beside its recipe's flags."""

    output_dir: Path | None = None
    """Not needed: nothing is written. Of ``hindsight`` with ``prompts``: the run whose feedback.jsonl is shown."""
    rows: int = 3
    """Show the first N examples; the summary is of all (``dataset_limit`` says of how many)."""
    use: int = 0
    """Of ``hindsight``, which draws words and order anew each time a record is used: show its U-th use, from 0."""
    tokens: bool = False
    """Instead of text one token a line: its index, position, branch (0 = prompt or plain text, k = answer k), id,
    whether it is supervised (*), and the index of the token it is then predicted from."""


def config_of(recipe: type) -> type:
    """The config of a recipe with the preview's flags; none of the folder where a run would go is required."""
    held = {"__doc__": recipe.__doc__, "__module__": __name__}
    return dataclass(frozen=True, kw_only=True)(type(f"Preview{recipe.__name__}", (PreviewFlags, recipe), held))


def usage(recipes: Mapping[str, str]) -> str:
    """What ``jaxalign preview --help`` prints; ``recipes`` has their summaries."""
    return "\n".join([
        "usage: jaxalign preview RECIPE --model FOLDER_OR_HUB_ID --dataset FILE [any flag of RECIPE] [--rows N]",
        "                        [--use U] [--tokens True]",
        "",
        "Shows the first examples as RECIPE would learn them: on a terminal supervised tokens are bold green and the",
        "others dim, in a pipe supervised spans stand inside ⟦ ⟧. Only the tokenizer of the model is read, and nothing",
        "is written.",
        "",
        *(f"  jaxalign preview {name:<{max(map(len, recipes))}}  {summary}" for name, summary in recipes.items()),
        "",
        "  --rows N        show the first N examples (3)",
        "  --use U         hindsight: the draws of each record's U-th use, from 0; words are drawn anew each epoch",
        "  --tokens True   one token a line: index, position, branch, id, supervised or not, predicted from which",
        "",
        "  jaxalign preview RECIPE --help   every flag with its default",
    ])  # fmt: skip


def run(config: Any, load: Callable[[Any], Callable[[Any], Any]], console: "Console | None" = None) -> None:
    """Read records and tokenizer, show the first examples and a summary.

    Args:
      config: a recipe's, with ``PreviewFlags``.
      load: the recipe's ``load``.
      console: where to; by default standard output.

    Raises:
      InputError: what is wrong with the input, as the recipe says it.
    """
    from rich.console import Console

    from jaxalign import data
    from jaxalign.recipes import load_tokenizer

    for name, least in (("rows", 1), ("use", 0)):
        if getattr(config, name) < least:
            raise InputError(f"--{name}: must be at least {least}, is {getattr(config, name)}")
    if config.use and not isinstance(config, data.ChainFormat):
        raise InputError("--use: only hindsight draws its examples anew each time; here all uses are alike")
    if config.output_dir is None and getattr(config, "prompts", None) is not None:
        raise InputError("--output-dir: with --prompts, name the run whose feedback.jsonl is to be shown")
    tokenise = load(config)
    tokenizer = load_tokenizer(config.model)
    found = tokenise(tokenizer)
    tokenizer.clean_up_tokenization_spaces = False  # what is shown is what the tokens say
    page = _Page(console or Console(), data.Encoder(tokenizer), config)
    if isinstance(found, list):
        page.prompts(found)
    else:
        page.run_data(found)


def show_examples(
    examples: Sequence["Example"], tokenizer: Any, console: "Console | None" = None, *, rows: int = 3
) -> None:
    """The first examples as ``jaxalign preview`` shows them: what is learnt is bold, or in a pipe inside ⟦ ⟧."""
    from rich.console import Console

    from jaxalign.data import Encoder

    page = _Page(console or Console(), Encoder(tokenizer), PreviewFlags(rows=rows))
    for example in examples[:rows]:
        page.example(example, f"record {example.record_id}", "")
    if len(examples) > rows:
        page.line(f"and {_count(len(examples) - rows, 'example')} more")


class _Page:
    """Examples as text or as tables, on a console."""

    def __init__(self, console: "Console", encoder: Any, config: Any) -> None:
        self.encoder, self.config = encoder, config
        self.special = {encoder.eos, *encoder.tokenizer.convert_tokens_to_ids(list(encoder.special_tokens))}
        self._console = console
        self._styled = console.is_terminal and console.color_system is not None

    def run_data(self, found: Any) -> None:
        """Examples, the first window of the text beside them, and all in one line."""
        from jaxalign.data import example_sizes

        examples, drawn = found.examples, not isinstance(found.examples, Sequence)
        tokens = targets = 0
        for index in range(len(examples)):
            example = examples.draw(index, self.config.use) if drawn else examples[index]
            tokens += example.count("token")
            targets += example.count("target")
            if index < self.config.rows:
                self.example(
                    example, f"record {example.record_id}", self._whole(example, self.config.max_length, drawn)
                )
        sizes = examples.sizes if drawn else example_sizes(examples, self.config.pair_layout)
        longest = int(sizes.tokens.max())
        summary = f"{_share(len(examples), 'example', tokens, targets)}, longest row {'up to ' * drawn}{longest} tokens"
        if found.pretraining is not None:
            windows = found.pretraining.examples
            self.example(windows[0], f"pretraining text, window 1 of {len(windows)}", "")
            counts = (sum(window.count(level) for window in windows) for level in ("token", "target"))
            summary += f"; pretraining text: {_share(len(windows), 'window', *counts)}"
        self.line(summary)

    def prompts(self, prompts: Sequence[Any]) -> None:
        """Prompts to sample from."""
        import numpy as np

        from jaxalign.data import Example

        for prompt in prompts[: self.config.rows]:
            ids = np.asarray(prompt.tokens, np.int32)
            none, positions = ids[:0], np.arange(len(ids), dtype=np.int32)
            bare = Example(0, ids, positions, 0 * ids, source_index=none, targets=none, target_sequence=none)
            self.example(bare, prompt.place, self._whole(bare, self.config.max_prompt_length, False))
        lengths = [len(prompt.tokens) for prompt in prompts]
        self.line(
            f"{_count(len(prompts), 'prompt')}, {sum(lengths)} tokens, none supervised: the responses that are sampled "
            f"will be; longest prompt {max(lengths)} tokens"
        )

    def example(self, example: "Example", name: str, state: str) -> None:
        """A title, then the example: each sequence's text, or its table of tokens."""
        from jaxalign.data import unshare

        targets, worse = example.count("target"), example.target_extras.get("negative")
        below = f" ({worse.sum()} of outputs below the best)" if worse is not None and worse.any() else ""
        said = [f"{example.count('token')} tokens", f"{targets} supervised{below}", *filter(None, [state])]
        self.line(f"== {name}: {', '.join(said)}", TITLE)
        rows = unshare(example)
        if self.config.tokens:
            self._table(example, rows)
            return
        for slot, row in enumerate(rows):
            if len(rows) > 1:
                better = [str(two + 1) for one, two in example.pairs.tolist() if one == slot]
                than = f", better than {', '.join(better)}" if better else ""
                self.line(f"-- answer {slot + 1} of {len(rows)}{than}", TITLE)
            self._text(row)

    def _whole(self, example: "Example", limit: int, drawn: bool) -> str:
        """Whether limits cut it, as far as its tokens tell."""
        ends = [index for index, position in enumerate(example.positions) if position == limit - 1]
        if example.count("target") and any(example.tokens[index] not in self.special for index in ends):
            return f"cut at {limit} tokens"
        if self.config.prompt_truncation != "keep_end":
            return "whole"
        prompt = getattr(self.config, "max_prompt_length", None)
        shorter = not ends and (prompt is None or int((example.branch == 0).sum()) < prompt)
        return "whole" if shorter and not drawn else ""

    def _text(self, row: "Example") -> None:
        """A sequence decoded in runs of one kind: a token may hold part of a character."""
        supervised = set((row.source_index + 1).tolist())
        kinds = [(index in supervised, token in self.special) for index, token in enumerate(row.tokens.tolist())]
        open_, begun = False, False
        for kind, run in itertools.groupby(range(len(kinds)), key=kinds.__getitem__):
            ids = [int(row.tokens[index]) for index in run]
            text = _visible(self.encoder.decode_following(ids) if begun else self.encoder.decode(ids))
            begun = begun or not kind[1]
            if not self._styled and kind[0] is not open_:
                text, open_ = ("⟦" if kind[0] else "⟧") + text, kind[0]
            self._write(text, STYLES[kind])
        self.line("⟧" if open_ else "")

    def _table(self, example: "Example", rows: Sequence["Example"]) -> None:
        """The whole example, a token a line."""
        sources: dict[int, int] = {}
        for slot, row in enumerate(rows):
            (own,) = ((example.branch == 0) | (example.branch == slot + 1)).nonzero()
            sources |= {int(own[source + 1]): int(own[source]) for source in row.source_index}
        self.line("index position branch      id supervised  from  text")
        columns = zip(*(column.tolist() for column in (example.positions, example.branch, example.tokens)), strict=True)
        for index, (position, branch, token) in enumerate(columns):
            mark = f"{'*':>10} {sources[index]:>5}" if index in sources else f"{'':>16}"
            self.line(
                f"{index:>5} {position:>8} {branch:>6} {token:>7} {mark}  {self._one(token)!r}",
                STYLES[index in sources, token in self.special],
            )

    def _one(self, token: int) -> str:
        """A token's text, or, of one that holds part of a character, how the vocabulary writes it."""
        text: str = self.encoder.decode_following([token])
        return str(self.encoder.tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text

    def line(self, text: str, style: str = "") -> None:
        """A line of its own."""
        self._write(f"{text}\n", style)

    def _write(self, text: str, style: str) -> None:
        if self._styled:
            self._console.out(text, style=style, highlight=False, end="")
        else:
            self._console.file.write(text)


def _visible(text: str) -> str:
    """Text whose control characters, but for tabs and line feeds, are written out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _share(number: int, what: str, tokens: int, targets: int) -> str:
    return f"{_count(number, what)}, {tokens} tokens, {targets} supervised ({targets / tokens:.1%})"
