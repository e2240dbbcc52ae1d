"""``jaxalign judge serve`` and ``export``: a study with people, and what it found as files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from jaxalign.evaluation.study import Access, Address, Store, Study

__all__ = ["ALIASES", "ExportConfig", "ServeConfig", "run_export", "run_serve"]

ALIASES = {"--output": "--output-dir"}
TOKEN_VARIABLE = "JAXALIGN_STUDY_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Let people compare pairs of outputs, side by side and blind, on a page in their browsers."""

    pairs: Path
    """Records (JSONL, CSV, Parquet) of ``prompt`` and ``outputs``, an object of system -> answer; or of ``prompt``,
    ``chosen`` and ``rejected``. Every two systems of a row are compared."""
    store: Path
    """The study's file (SQLite): begun, or gone on with. It holds the whole study."""
    axes: tuple[str, ...] = ("overall",)
    """What is asked of every pair: accuracy, coherence, coverage, helpful, harmless, overall, or 'name=Question?'."""
    raters: tuple[str, ...] = ()
    """Names, such as anna,ben: each gets a link of his own. Without it whoever has the study's link joins by name."""
    ratings_per_item: int | None = None
    """Raters of each pair; None = every rater compares every pair."""
    ours: str | None = None
    """Compare only this system with each other, not every two; the export counts its wins."""
    ties: bool = True
    """Whether "no difference" is an answer."""
    title: str | None = None
    """Headline of the page; raters read it: name no system in it."""
    instructions: Path | None = None
    """A text file that raters read first; an empty line begins a paragraph. None = general ones."""
    seed: int = 0
    """Decides who gets which pairs, in which order, and which output stands first."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need a token to join, which is part of the link printed."""
    port: int = 8765
    """Port to listen on; 0 = one that is free."""
    public_url: str | None = None
    """What links begin with, where a proxy (with HTTPS) stands before this server."""
    token_file: Path | None = None
    """File with a token of your own, 16 characters or more; also from the environment, JAXALIGN_STUDY_TOKEN. Another
    token ends all links given out before. None = one is made where one is needed."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write what people said: judgements.csv, preferences.jsonl to train on, verdicts.jsonl to count wins of."""

    store: Path
    """The study's file; it may be served meanwhile."""
    output_dir: Path
    """Folder for the three files."""
    axis: str | None = None
    """Whose judgements become preferences.jsonl; None = the only one, or "overall"."""
    preferences: Literal["majority", "every"] = "majority"
    """One record of a pair, of what more raters prefer, or one of every judgement. Ties make none."""
    ours: str | None = None
    """The system whose wins verdicts.jsonl counts; None = as served, else the first of each pair."""


def run_serve(config: ServeConfig, *, environment: Mapping[str, str] = os.environ) -> None:
    """Serve until Ctrl+C. Raises ``InputError`` for anything wrong with flags, pairs or store."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}: pip install 'jaxalign[study]'") from None
    from jaxalign.evaluation import study

    token = _token(config, environment)
    made, same = _study(config)
    with study.Store.open(config.store, made) as store, study.bind(config.host, config.port) as listening:
        address = study.Address(config.host, listening.getsockname()[1], config.public_url)
        access = _access(store.secret, address, token)
        _say(config, store, address, access, same)
        try:
            study.serve(store, access, address, listening)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", flush=True)


def run_export(config: ExportConfig) -> None:
    """Write the files and say what is in them."""
    from jaxalign.evaluation import study

    done = study.export_study(
        config.store, config.output_dir, axis=config.axis, preferences=config.preferences, ours=config.ours
    )
    what = "pairs without a majority" if config.preferences == "majority" else "ties"
    print(
        f"{config.output_dir}: {done.judgements} judgements; {done.records} records on {done.axis}, "
        f"{done.tied} {what} left out; {', '.join(path.name for path in done.files)}"
    )
    if not done.judgements:
        print("Nobody has answered yet: the `jaxalign judge serve` that began the study goes on and prints the links")
        return
    print(
        f"Tables and figures: jaxalign evaluate --verdicts {config.output_dir / 'verdicts.jsonl'} "
        f"--output-dir {config.output_dir / 'report'}"
    )


def _study(config: ServeConfig) -> "tuple[Study, int]":
    """The study, and how many pairs were left out of it for being the same text."""
    from jaxalign.evaluation import study

    pairs, same = study.read_pairs(config.pairs, ours=config.ours)
    texts = {}
    if config.title is not None:
        texts["title"] = config.title
    if config.instructions is not None:
        texts["instructions"] = _read(config.instructions, "--instructions")
    made = study.Study(
        pairs=pairs,
        axes=study.read_axes(config.axes),
        ties=config.ties,
        raters=study.read_raters(config.raters),
        ratings_per_item=config.ratings_per_item,
        ours=config.ours,
        seed=config.seed,
        **texts,
    )
    return made, same


def _access(secret: bytes, address: "Address", token: str | None) -> "Access":
    """With the token given, one made where others than this machine can come, or none."""
    from jaxalign.evaluation import study

    if token is None and (not address.local or address.public_url is not None):
        return study.Access.with_token(secret)
    return study.Access(secret, token)


def _token(config: ServeConfig, environment: Mapping[str, str]) -> str | None:
    if config.token_file is not None:
        return _read(config.token_file, "--token-file")
    return environment.get(TOKEN_VARIABLE) or None


def _read(path: Path, flag: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InputError(f"{flag}: {path}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{flag}: {path}: {error.strerror}") from None
    if not text:
        raise InputError(f"{flag}: {path}: is empty")
    return text


def _say(config: ServeConfig, store: "Store", address: "Address", access: "Access", same: int) -> None:
    """What is served, and the links: the only place where they are written."""
    made = store.study
    left_out = f" ({same} of equal texts left out)" if same else ""
    by = f"{made.ratings_per_item} raters each" if made.ratings_per_item else "all of them by every rater"
    lines = [f"{config.store}: {len(made.pairs)} pairs{left_out}, {by}; {', '.join(axis.name for axis in made.axes)}"]
    if not made.raters:
        lines.append(f"to join  {address.link(access.token or '')}")
    raters = store.raters()
    width = max(map(len, raters.values()), default=0)
    for rater, name in raters.items():
        done, total = store.progress(rater)
        lines.append(f"{name:<{width}}  {address.link(access.key(rater))}  {done} of {total}")
    lines.append("Every answer is stored at once. Ctrl+C stops; the same command goes on.")
    print("\n".join(lines), flush=True)
