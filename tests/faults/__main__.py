"""The fault suite: ``make faults``.

    python -m tests.faults [--kills 40] [--seed 0] [--keep FOLDER]

Tiny models, real ``jaxalign sft`` and ``jaxalign dpo`` commands in processes of their own. Each scenario ends with the
final model's bytes and the metrics' rows of the run that nothing happened to, or the suite stops there.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.faults.harness import Launcher
from tests.faults.scenarios import Row, Suite, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--only-kills", action="store_true", help="of sft, and nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs, to look at afterwards")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        print(f"{row.scenario}: {row.skipped or f'{row.disturbances} times, {row.seconds:.0f} s'}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary, Launcher() as launcher:
        folder = options.keep or Path(temporary)
        few = max(options.kills // 4, 2)
        with Suite.opened(
            launcher, folder / "sft", "sft", steps=40 * options.kills, save_every=20, seed=options.seed
        ) as sft:
            done(sft.kills(options.kills))
            if options.only_kills:
                print(table(rows))
                return
            done(sft.damages(few))
            done(sft.signals(few))
            done(sft.full_disk(3))
            done(sft.file_size())
            done(sft.no_permission())
            done(sft.gone())
        with Suite.opened(launcher, folder / "dpo", "dpo", steps=40 * few, save_every=20, seed=options.seed + 1) as dpo:
            done(dpo.kills(few))
            done(dpo.damages(2))
    print(table(rows))
    print("\nEvery run ended bit for bit as the run that nothing happened to: final model and metrics.jsonl.")


if __name__ == "__main__":
    main()
