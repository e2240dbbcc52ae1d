"""``jaxalign`` alone: where to start."""

import sys
from collections.abc import Mapping

import jaxalign

__all__ = ["FIRST", "ROAD", "show_start"]

# Commands that work anywhere, with nothing downloaded.
FIRST = {
    "jaxalign doctor": "what is on this machine",
    "jaxalign plan sft --model gpt2 --devices H100": "will it fit, how fast",
}
ROAD = """\
  sft ──┬── reward ── ppo ──┐
        ├── dpo ────────────┼── sample ── evaluate
        └── hindsight ──────┘"""
PLAIN = str.maketrans("─┬├└┐┼┘", "-++++++")
DOCS = "README.md, and docs/ with one page a subject, in the folder jaxalign comes from"


def show_start(summaries: Mapping[str, str]) -> None:
    """Print the road, the first commands, every command in a line, and where more is: in colour on a terminal."""
    width = max(map(len, summaries))
    title = f"jaxalign {jaxalign.__version__}"
    first = max(map(len, FIRST))
    parts = [
        ("", f"{title}: from a pretrained language model to an aligned one, in pure JAX"),
        ("The road", ROAD),
        ("Start here", "\n".join(f"  {command:<{first}}  {what}" for command, what in FIRST.items())),
        ("Commands", "\n".join(f"  jaxalign {name:<{width}}  {summary}" for name, summary in summaries.items())),
        ("More", f"  jaxalign COMMAND --help   every flag with its default\n  {DOCS}"),
    ]
    if sys.stdout.isatty():
        _coloured(parts, title, summaries)
        return
    text = "\n\n".join(f"{head}\n{body}" if head else body for head, body in parts) + "\n"
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN)
    sys.stdout.write(text)


def _coloured(parts: list[tuple[str, str]], title: str, summaries: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    for head, body in parts:
        if head:
            console.print(Text(head, style="bold"))
        text = Text(body if console.encoding.startswith("utf") else body.translate(PLAIN))
        text.highlight_words([title], "bold cyan")
        text.highlight_regex(r"jaxalign [a-z]+", "cyan")
        if head == "The road":
            text.highlight_words(list(summaries), "bold green")
        console.print(text, soft_wrap=True)
        console.print()
