import io

from rich.console import Console

from jaxalign.training import Progress


def run(console, **options):
    with Progress(20, console=console, every=5, **options) as progress:
        for step in range(options.get("start", 0) + 1, 21):
            progress.update(step, {"loss": 1 / step, "reward_margin": 0.25, "other": 1.0}, tokens=1000)


def test_a_log_gets_plain_lines():
    text = io.StringIO()
    run(Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/20", "5/20", "10/20", "15/20", "20/20"]
    assert lines[0] == "train 1/20  loss 1  reward margin 0.25"
    assert "tokens/s" in lines[1]
    assert lines[1].endswith("left")
    assert "\x1b" not in text.getvalue()


def test_a_resumed_run_starts_where_it_was():
    text = io.StringIO()
    run(Console(file=text, width=200), start=12)
    said, *lines = text.getvalue().splitlines()
    assert said == "train continues from step 12 of 20"
    assert [line.split()[1] for line in lines] == ["13/20", "15/20", "20/20"]


def test_a_terminal_gets_a_bar():
    text = io.StringIO()
    run(Console(file=text, width=120, force_terminal=True))
    assert "20/20" in text.getvalue()
    assert "reward margin 0.25" in text.getvalue()
    assert "left" in text.getvalue()
