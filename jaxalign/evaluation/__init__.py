"""What the papers plot, as functions that return numbers with intervals, tables and figures.

Here live measures on samples, win rates and agreement, reward-KL frontiers, their intervals, and the page that shows
them. What may not live here: anything that trains or samples; these functions are given arrays and texts.
"""

from jaxalign.evaluation._agreement import agreement_between, agreement_within, cohen_kappa, krippendorff_alpha
from jaxalign.evaluation._bootstrap import Interval, bootstrap_interval, paired_bootstrap_difference
from jaxalign.evaluation._calibration import Calibration, CalibrationBin, calibration, plot_calibration
from jaxalign.evaluation._frontier import (
    FrontierPoint,
    RewardAtKL,
    RewardDifference,
    interpolate_reward_at_kl,
    reward_difference_at_kl,
)
from jaxalign.evaluation._frontier_area import (
    AreaDifference,
    FrontierArea,
    frontier_area,
    frontier_area_difference,
    pareto_front,
)
from jaxalign.evaluation._human_study import HumanStudy, human_studies, human_study, human_study_rows
from jaxalign.evaluation._judged import JudgedPair, WinRatePoint, read_judged, win_rate_points, win_rate_rows
from jaxalign.evaluation._judged_tables import judge_agreement_rows, paired_test_rows, pairwise_rows
from jaxalign.evaluation._kl import SequenceKL, sequence_kl
from jaxalign.evaluation._length_control import length_controlled_win_rate
from jaxalign.evaluation._likelihood import perplexity, reward_accuracy
from jaxalign.evaluation._messages import as_text
from jaxalign.evaluation._output_pairs import Pair, read_pairs
from jaxalign.evaluation._paired_wins import PairedTest, paired_test, paired_tests
from jaxalign.evaluation._plot import COLOURS as FIGURE_COLOURS
from jaxalign.evaluation._plot import STYLE as FIGURE_STYLE
from jaxalign.evaluation._plot import plot_frontier, save_figure
from jaxalign.evaluation._plot_curves import plot_curves
from jaxalign.evaluation._plot_growth import plot_growth
from jaxalign.evaluation._plot_intervals import plot_intervals
from jaxalign.evaluation._plot_scores import ScorePoint, plot_scores
from jaxalign.evaluation._plot_wins import plot_pairwise, plot_win_rate
from jaxalign.evaluation._report import ReportFigure, ReportPart, ReportSamples, ReportTable, ReportText, html_report
from jaxalign.evaluation._rouge import copied_share, rouge
from jaxalign.evaluation._student import student_interval
from jaxalign.evaluation._tables import (
    Percent,
    PValue,
    Rounded,
    cell_text,
    csv_table,
    difference_rows,
    frontier_area_rows,
    frontier_rows,
    latex_table,
    markdown_table,
    save_table,
)
from jaxalign.evaluation._text import (
    LengthStatistics,
    distinct_n,
    distinct_n_interval,
    length_statistics,
    ngram_entropy,
    repetition,
    sample_distance,
)
from jaxalign.evaluation._wilson import wilson_interval
from jaxalign.evaluation._wins import Outcome, TieRule, WinRate, win_rate

__all__ = [
    "FIGURE_COLOURS",
    "FIGURE_STYLE",
    "AreaDifference",
    "Calibration",
    "CalibrationBin",
    "FrontierArea",
    "FrontierPoint",
    "HumanStudy",
    "Interval",
    "JudgedPair",
    "LengthStatistics",
    "Outcome",
    "PValue",
    "Pair",
    "PairedTest",
    "Percent",
    "ReportFigure",
    "ReportPart",
    "ReportSamples",
    "ReportTable",
    "ReportText",
    "RewardAtKL",
    "RewardDifference",
    "Rounded",
    "ScorePoint",
    "SequenceKL",
    "TieRule",
    "WinRate",
    "WinRatePoint",
    "agreement_between",
    "agreement_within",
    "as_text",
    "bootstrap_interval",
    "calibration",
    "cell_text",
    "cohen_kappa",
    "copied_share",
    "csv_table",
    "difference_rows",
    "distinct_n",
    "distinct_n_interval",
    "frontier_area",
    "frontier_area_difference",
    "frontier_area_rows",
    "frontier_rows",
    "html_report",
    "human_studies",
    "human_study",
    "human_study_rows",
    "interpolate_reward_at_kl",
    "judge_agreement_rows",
    "krippendorff_alpha",
    "latex_table",
    "length_controlled_win_rate",
    "length_statistics",
    "markdown_table",
    "ngram_entropy",
    "paired_bootstrap_difference",
    "paired_test",
    "paired_test_rows",
    "paired_tests",
    "pairwise_rows",
    "pareto_front",
    "perplexity",
    "plot_calibration",
    "plot_curves",
    "plot_frontier",
    "plot_growth",
    "plot_intervals",
    "plot_pairwise",
    "plot_scores",
    "plot_win_rate",
    "read_judged",
    "read_pairs",
    "repetition",
    "reward_accuracy",
    "reward_difference_at_kl",
    "rouge",
    "sample_distance",
    "save_figure",
    "save_table",
    "sequence_kl",
    "student_interval",
    "wilson_interval",
    "win_rate",
    "win_rate_points",
    "win_rate_rows",
]
