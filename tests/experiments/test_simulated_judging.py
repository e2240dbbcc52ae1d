"""The simulated judging: what it writes, and that what comes out is what was put in."""

import csv

from experiments import simulated_judging


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_finds_the_rates_it_drew_from(tmp_path, capsys):
    simulated_judging.main(simulated_judging.Config(output_dir=tmp_path, prompts=64))
    rates = [row for row in rows_of(tmp_path / "temperature" / "win_rates.csv") if row["judge"] == "C"]
    held = 0
    for row in rates:
        place = simulated_judging.TEMPERATURES.index(float(row["temperature"]))
        truth = 100 * simulated_judging.TLDR[row["method"]][place]
        truth = (1 - simulated_judging.TIES) * truth + simulated_judging.TIES * 50  # ties are halves
        held += float(row["at equal length % low"]) <= truth <= float(row["at equal length % high"])
    assert len(rates) == 15
    assert held >= 12
    for name in ("temperature/report.html", "training/win_rate_over_step.png", "axes/pairwise.svg", "human_study.tex"):
        assert (tmp_path / name).stat().st_size > 0
    (*_, average) = rows_of(tmp_path / "axes" / "pairwise.csv")
    assert average["axis"] == "average"
    assert "| N respondents |" in capsys.readouterr().out
