"""The command line that the Chain of Hindsight experiments share."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

__all__ = ["command"]


def command(
    text: str | None, name: str, presets: Mapping[str, Any], run: Callable[[Any, Path, str], dict[str, Any]]
) -> Callable[..., None]:
    """``main(arguments)`` of an experiment: --preset, --output-dir, and every field of the preset as a flag."""

    def main(arguments: Sequence[str] | None = None) -> None:
        import tyro

        first = argparse.ArgumentParser(add_help=False)
        first.add_argument("--preset", choices=presets, default=next(iter(presets)))
        first.add_argument("--output-dir", type=Path)
        known, rest = first.parse_known_args(arguments)
        program = f"{name} --preset {known.preset} --output-dir DIR"
        chosen = presets[known.preset]
        try:
            table = tyro.cli(type(chosen), default=chosen, args=rest, prog=program, description=text)
            run(table, known.output_dir or Path("runs") / f"{name.replace('_', '-')}-{known.preset}", known.preset)
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(f"{name}: stopped; the same command goes on with the stage that was running", file=sys.stderr)
            sys.exit(130)

    return main
