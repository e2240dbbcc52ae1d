"""The command line that every experiment has: a preset, every field of it as a flag, and a dry run."""

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from jaxalign.cli import complain, end, said_once, show_examples
from jaxalign.data import Example
from jaxalign.errors import InputError, did_you_mean

__all__ = ["Command", "FirstBatch", "Flags"]

C = TypeVar("C")
P = TypeVar("P")


@dataclass(frozen=True)
class FirstBatch:
    """The examples of an experiment's first update; none where nothing is trained."""

    examples: Sequence[Example] = ()
    tokenizer: Any = None
    note: str = ""
    """What else there is to know of them."""


@dataclass(frozen=True, kw_only=True)
class Flags(Generic[P, C]):
    """What a command line says: the fields of the preset are flags beside the first three."""

    preset: P
    """Where the numbers below come from; flags beside it win."""
    output_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Where everything is written; the same command again goes on there."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the resolved preset and the first batch, and write nothing."""
    config: Annotated[C, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Command(Generic[C]):
    """``main`` of an experiment."""

    text: str | None
    """The experiment's docstring."""
    name: str
    """Of its module."""
    presets: Mapping[str, C]
    """The first is the default."""
    run: Callable[[C, Path, str], Any]
    """``(preset, output folder, name of the preset)``."""
    first_batch: Callable[[C], FirstBatch]
    """What ``--dry-run`` shows below the resolved preset; it writes nothing."""

    def __call__(self, arguments: Sequence[str] | None = None) -> None:
        """Parse and run; what is wrong or fails, and a stop, are one line on stderr and an exit status."""
        sys.excepthook = said_once
        config: C | None = None
        dry = False
        try:
            flags = self.parse(arguments)
            config, dry = flags.config, flags.dry_run
            if dry:
                _show(config, flags.preset, self.first_batch(config))
            else:
                with _terminated():
                    self.run(config, flags.output_dir, flags.preset)
        except KeyboardInterrupt:  # of SIGTERM too, and of a training run that was stopped between two steps
            goes_on = "" if dry else "; the same command goes on with the stage that was running"
            sys.exit(complain(self.name, f"stopped{goes_on}", 130))
        except Exception as error:
            sys.exit(end(self.name, error, _flags(config)))

    def parse(self, arguments: Sequence[str] | None = None) -> Flags[str, C]:
        """What ``arguments`` (None: the command line's) say. Nothing is read, nothing run.

        Raises:
          InputError: no such preset.
          SystemExit: after ``--help``, which shows the preset's numbers, or after what the parser found wrong.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        default = next(iter(self.presets))
        first.add_argument("--preset", nargs="?", default=default, const=default)  # without a name: for tyro to refuse
        name = first.parse_known_args(arguments)[0].preset
        if name not in self.presets:
            raise InputError(f"--preset: there is no {name!r}; {did_you_mean(name, self.presets)}")
        chosen = self.presets[name]
        folder = Path("runs") / f"{self.name.replace('_', '-')}-{name}"
        kind: Any = Flags  # of what only now is known
        found: Flags[str, C] = tyro.cli(
            kind[Literal[tuple(self.presets)], type(chosen)],
            default=Flags(preset=name, output_dir=folder, config=chosen),
            args=arguments,
            prog=f"python -m experiments.{self.name}",
            description=self.text,
        )
        return found


def _flags(config: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of a preset; those of a config inside it have its name before theirs."""
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        flag = prefix + field.name.replace("_", "-")
        inside = getattr(config, field.name)
        yield from _flags(inside, f"{flag}.") if dataclasses.is_dataclass(inside) else (flag,)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, by which schedulers and preempted machines stop a process, ends it as Ctrl-C does, with a word."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(config: Any, preset: str, batch: FirstBatch) -> None:
    from rich.console import Console
    from rich.pretty import Pretty

    console = Console(soft_wrap=True)
    console.print(f"preset {preset}", style="bold", highlight=False)
    console.print(Pretty(config, expand_all=True))
    console.print("first batch", style="bold", highlight=False)
    if batch.note:
        console.print(batch.note, markup=False, highlight=False)
    if batch.examples:
        show_examples(batch.examples, batch.tokenizer, console)
