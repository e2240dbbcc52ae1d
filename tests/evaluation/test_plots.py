"""What figures show: read back from the drawn axes."""

import numpy as np

from jaxalign import evaluation


def test_growth_is_drawn_on_logarithmic_axes_beside_the_line_of_proportion(tmp_path):
    curves = {"batch": [(1, 1), (2, 1.9), (4, 3.7)], "layers": [(1, 1), (2, 2.2)]}
    figure = evaluation.plot_growth({"time": curves, "memory": {"batch": [(1, 1), (8, 4)]}})
    time, memory = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["time", "memory"]
    assert {axes.get_xscale() for axes in figure.axes} | {axes.get_yscale() for axes in figure.axes} == {"log"}
    lines = {line.get_label(): line.get_xydata() for line in time.get_lines()}
    np.testing.assert_array_equal(lines["batch"], curves["batch"])
    np.testing.assert_array_equal(lines["layers"], curves["layers"])
    np.testing.assert_array_equal(lines["in proportion"], [[1, 1], [8, 8]])  # to the largest size of all panels
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in time.get_lines()}) == 3
    png, svg = evaluation.save_figure(figure, tmp_path / "growth")
    assert png.stat().st_size > 0
    assert "in proportion" in svg.read_text()
    assert len(memory.get_lines()) == 2


def test_intervals_have_a_line_a_name_and_the_single_runs_beside_it():
    intervals = {"DPO": evaluation.Interval(0.5, 0.4, 0.6), "PPO": evaluation.Interval(0.3, 0.1, 0.5)}
    (axes,) = evaluation.plot_intervals(intervals, points={"DPO": [0.45, 0.55]}, label="reward").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["PPO", "DPO"]  # the first name at the top
    drawn = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert [[0.4, 1], [0.6, 1]] in drawn
    assert [[0.1, 0], [0.5, 0]] in drawn
    assert [[0.45, 1], [0.55, 1]] in drawn
    assert axes.get_xlabel() == "reward"
