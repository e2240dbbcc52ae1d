"""The command line that every experiment has: a preset, every field of it as a flag, and a dry run."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxalign.data import Example
from jaxalign.errors import InputError, did_you_mean

__all__ = ["FirstBatch", "command"]

C = TypeVar("C")


@dataclass(frozen=True)
class FirstBatch:
    """The examples of an experiment's first update; none where nothing is trained."""

    examples: Sequence[Example] = ()
    tokenizer: Any = None
    note: str = ""
    """What else there is to know of them."""


def command(
    text: str | None,
    name: str,
    presets: Mapping[str, C],
    run: Callable[[C, Path, str], Any],
    first_batch: Callable[[C], FirstBatch],
) -> Callable[..., None]:
    """``main(arguments)`` of an experiment: --preset, --output-dir, --dry-run, and every field of the preset as a flag.

    Args:
      text: the experiment's docstring.
      name: of its module.
      presets: the first is the default.
      run: ``(preset, output folder, name of the preset)``.
      first_batch: what ``--dry-run`` shows below the resolved preset; it writes nothing.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        import tyro

        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", default=next(iter(presets)))
        first.add_argument("--output-dir", type=Path)
        first.add_argument("--dry-run", action="store_true")
        known, rest = first.parse_known_args(arguments)
        program = f"{name} --preset {{{','.join(presets)}}} --output-dir DIR [--dry-run]"
        try:
            if known.preset not in presets:
                raise InputError(f"--preset: there is no {known.preset!r}; {did_you_mean(known.preset, presets)}")
            chosen = presets[known.preset]
            config = tyro.cli(type(chosen), default=chosen, args=rest, prog=program, description=text)
            if known.dry_run:
                _show(config, known.preset, first_batch(config))
            else:
                folder = known.output_dir or Path("runs") / f"{name.replace('_', '-')}-{known.preset}"
                with _terminated():
                    run(config, folder, known.preset)
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stopped:
            print(f"{name}: stopped; the same command goes on with the stage that was running", file=sys.stderr)
            sys.exit(143 if isinstance(stopped, _Terminated) else 130)

    return main


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, by which schedulers and preempted machines stop a process, ends it as Ctrl-C does, with a word."""

    def stop(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(config: Any, preset: str, batch: FirstBatch) -> None:
    from rich.console import Console
    from rich.pretty import Pretty

    from jaxalign.cli import show_examples

    console = Console(soft_wrap=True)
    console.print(f"preset {preset}", style="bold", highlight=False)
    console.print(Pretty(config, expand_all=True))
    console.print("first batch", style="bold", highlight=False)
    if batch.note:
        console.print(batch.note, markup=False, highlight=False)
    if batch.examples:
        show_examples(batch.examples, batch.tokenizer, console)
