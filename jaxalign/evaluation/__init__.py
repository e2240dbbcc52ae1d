"""What the papers plot, as functions that return numbers with intervals, tables and figures.

Here live measures on samples, reward-KL frontiers and their intervals. What may not live here: anything that trains or
samples; these functions are given arrays and texts.
"""

from jaxalign.evaluation._bootstrap import Interval, bootstrap_interval, paired_bootstrap_difference
from jaxalign.evaluation._calibration import Calibration, CalibrationBin, calibration, plot_calibration
from jaxalign.evaluation._frontier import (
    FrontierPoint,
    RewardAtKL,
    RewardDifference,
    interpolate_reward_at_kl,
    reward_difference_at_kl,
)
from jaxalign.evaluation._kl import SequenceKL, sequence_kl
from jaxalign.evaluation._plot import plot_frontier, save_figure
from jaxalign.evaluation._plot_growth import plot_growth
from jaxalign.evaluation._plot_intervals import plot_intervals
from jaxalign.evaluation._rouge import copied_share, rouge
from jaxalign.evaluation._tables import csv_table, difference_rows, frontier_rows, markdown_table
from jaxalign.evaluation._text import distinct_n

__all__ = [
    "Calibration",
    "CalibrationBin",
    "FrontierPoint",
    "Interval",
    "RewardAtKL",
    "RewardDifference",
    "SequenceKL",
    "bootstrap_interval",
    "calibration",
    "copied_share",
    "csv_table",
    "difference_rows",
    "distinct_n",
    "frontier_rows",
    "interpolate_reward_at_kl",
    "markdown_table",
    "paired_bootstrap_difference",
    "plot_calibration",
    "plot_frontier",
    "plot_growth",
    "plot_intervals",
    "reward_difference_at_kl",
    "rouge",
    "save_figure",
    "sequence_kl",
]
