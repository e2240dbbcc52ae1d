"""The page: self-contained, and whatever a model wrote is shown, never run."""

import base64
import re
from html.parser import HTMLParser

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import (
    Interval,
    ReportFigure,
    ReportSamples,
    ReportTable,
    ReportText,
    csv_table,
    html_report,
    markdown_table,
    plot_curves,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "</title><style>*{display:none}</style>",
    "&lt;b&gt; <!-- <svg/onload=alert(1)>",
    "$\\frac{1}{ & \\input{x}",
    "\u202egnp.exe \x00 \x1b[31m \ud800",
]


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def page_of(text):
    name = text if text.isprintable() else "loss"  # what names curves is printable
    figure = plot_curves({name: [(1, 0.5), (2, 0.25)], "other": [(1, 1.0)]})
    return html_report(
        text,
        [
            ReportText(text, f"{text}\n\n{text}"),
            ReportTable(text, [{text: text, "n": 3}]),
            ReportFigure(text, figure),
            ReportSamples([text, "b"], [(text, [text, text])]),
        ],
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(text):
    written = page_of(text)
    written.encode("utf-8")  # no lone surrogate is left
    page, plain = Page(written), Page(page_of("plain"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]  # it added no element
    assert [set(attributes) for _, attributes in page.tags] == [set(attributes) for _, attributes in plain.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    shown = re.sub("[\x00\x1b\u202e\ud800]", lambda found: f"[U+{ord(found[0]):04X}]", text)
    assert sum(shown in piece for piece in page.texts) >= 9
    assert "\u202e" not in written


def test_what_has_no_width_is_named():
    hidden = "\xad\u061c\u180e\u200b\u2028\u2029\u2060\u206f\U000e0041"
    page = html_report("t", [ReportText("h", f"a{hidden}b \u200c\u200d")])
    assert "a" + "".join(f"[U+{ord(one):04X}]" for one in hidden) + "b \u200c\u200d" in page


def test_cells_are_neither_formulas_nor_html():
    rows = [{"=a": "=1+1", "b": "<b>&", "n": -1.5}]
    assert csv_table(rows) == "'=a,b,n\n'=1+1,<b>&,-1.5\n"
    assert "| =1+1 | &lt;b>&amp; | -1.500 |" in markdown_table(rows)


def test_nothing_is_fetched_and_no_script_may_run():
    page = Page(page_of("plain"))
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy  # so the default holds
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 1
    kind, _, data = sources[0].partition("base64,")
    assert kind == "data:image/svg+xml;"
    assert b"<svg" in base64.b64decode(data)


def test_cells_are_as_in_the_other_tables():
    rows = [{"method": "DPO", "rate": Interval(0.5, 0.25, 0.75), "p": 0.12345, "n": None}, {"method": "PPO", "p": 2}]
    written = html_report("t", [ReportTable("c", rows)])
    assert '<th>method</th><th class="number">rate</th><th class="number">p</th>' in written
    assert '<td>DPO</td><td class="number">0.500 [0.250, 0.750]</td><td class="number">0.123</td>' in written
    assert '<td>PPO</td><td class="number"></td><td class="number">2</td>' in written


def test_paragraphs_and_line_breaks_stay():
    page = Page(html_report("t", [ReportText("h", "one\r\ntwo\n\n \nthree\tfour")]))
    assert [piece for piece in page.texts if piece.strip()][-3:] == ["h", "one\ntwo", "three\tfour"]


def test_samples_need_a_text_a_column():
    with pytest.raises(InputError, match="sample 2 has 1 texts for 2 columns"):
        html_report("t", [ReportSamples(["a", "b"], [("p", ["x", "y"]), ("q", ["x"])])])


def test_the_same_parts_give_the_same_page():
    assert page_of("plain") == page_of("plain")


def test_curves_have_a_panel_each():
    figure = plot_curves({"loss": [(1, 3.0), (2, 2.0)], "lr": [(1, 0.1), (2, 0.2)]})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["loss", "lr"]
    assert shown[0].get_lines()[0].get_xydata().tolist() == [[1, 3.0], [2, 2.0]]
    with pytest.raises(InputError, match="no curves"):
        plot_curves({})


def test_curves_that_share_a_panel_share_a_style():
    panels = {
        "loss": {"DPO": [(1, 3.0), (2, 2.0)], "PPO": [(1, 1.0), (2, 0.5)]},
        "reward": {"PPO": [(1, 0.1), (2, 0.2)]},
    }
    figure = plot_curves(panels)
    first, second = figure.axes[:2]
    assert [line.get_ydata().tolist() for line in first.get_lines()] == [[3.0, 2.0], [1.0, 0.5]]
    (again,) = second.get_lines()
    assert again.get_color() == first.get_lines()[1].get_color() != first.get_lines()[0].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["DPO", "PPO"]
    assert not plot_curves({"loss": [(1, 3.0), (2, 2.0)]}).legends
