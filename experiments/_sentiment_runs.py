"""The training runs of the sentiment study: which there are, and each as a stage that keeps what it measured."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments._sentiment import (
    DPO,
    OTHER_PAIRS,
    UNWEIGHTED,
    Measurement,
    Method,
    Study,
    measure,
)
from experiments._sentiment_rlhf import PPO, train_ppo
from experiments._sentiment_start import Assets, other_preferences, reward_inputs
from experiments._sentiment_training import shared_activations, train
from experiments._stages import JSON, TREE, Report, Stages
from jaxalign import models
from jaxalign.data import Example
from jaxalign.recipes import PreferenceObjective

__all__ = ["SWEPT", "Run", "measure_start", "methods", "run_methods", "seeded", "stage_count"]

SWEPT = (DPO, "PPO", "Preferred-FT")
"""Methods whose policies are sampled at every temperature, beside the start model."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run."""

    points: list[Measurement]
    """Along the run; the last is its end."""
    folder: Path
    """Of its stage."""
    inputs: Mapping[str, Any]
    """What decides it, for the keys of later stages."""

    @property
    def last(self) -> Measurement:
        return self.points[-1]

    def policy(self) -> Any:
        """Its parameters, of a run whose policy is kept."""
        return TREE.load(self.folder)


def methods(study: Study) -> list[Method]:
    """Every training run of the study; those of the figure first."""

    def pairwise(
        name: str, setting: str, seeds: Sequence[int], *, repeats: bool = True, **options: Any
    ) -> list[Method]:
        objective = PreferenceObjective(temperature=study.temperature, **options)
        return _seeds(name, setting, objective, study.seed, seeds, repeats=repeats)

    found: list[Method] = []
    for beta in study.dpo_betas:
        seeds = study.dpo_seeds if beta == study.dpo_seeds_at else study.dpo_seeds[:1]
        found += pairwise(DPO, f"beta {beta:g}", seeds, loss=("sigmoid",), beta=beta)
    found += pairwise("Preferred-FT", "", study.preferred_ft_seeds, repeats=False, loss=("preferred_ft",))
    for alpha in study.unlikelihood_alphas:
        seeds = study.unlikelihood_seeds if alpha == study.unlikelihood_seeds_at else study.unlikelihood_seeds[:1]
        setting = f"alpha {alpha:g}"
        found += pairwise("Unlikelihood", setting, seeds, loss=("unlikelihood",), unlikelihood_weight=alpha)
    rewards: tuple[tuple[str, Literal["learned", "true"], Sequence[int]], ...] = (
        ("PPO", "learned", study.rlhf.seeds),
        ("PPO-GT", "true", study.rlhf.true_seeds),
    )
    for name, reward, every in rewards:
        for target in study.rlhf.targets:
            wanted = every if target == study.rlhf.seeds_at else every[:1]
            found += _seeds(name, f"KL {target:g}", PPO(reward, target), study.seed, wanted)
    at, setting = study.dpo_seeds_at, f"beta {study.dpo_seeds_at:g}"
    found += pairwise(UNWEIGHTED, setting, study.ablations.unweighted_seeds, loss=("unweighted",), beta=at)
    found += pairwise(OTHER_PAIRS, setting, study.ablations.other_seeds, loss=("sigmoid",), beta=at)
    return found


def _seeds(
    name: str,
    setting: str,
    objective: PreferenceObjective | PPO,
    first: int,
    seeds: Sequence[int],
    *,
    repeats: bool = True,
) -> list[Method]:
    """A run for every seed; with ``repeats`` all but one stand off the figure."""
    found = []
    for place, seed in enumerate(seeds):
        repeat = repeats and place > 0
        named = repeat or (not repeats and len(seeds) > 1)
        words = ", ".join(filter(None, [setting, f"seed {seed}" if named else ""]))
        found.append(Method(name, words, objective, first + seed, repeat))
    return found


def seeded(runs: Sequence[Method], name: str) -> list[Method]:
    """The setting of a method that has the most seeds, a run each; empty where there is no such method."""
    groups: dict[Any, list[Method]] = {}
    for method in runs:
        if method.name == name:
            groups.setdefault(method.objective, []).append(method)
    return max(groups.values(), key=len, default=[])


def stage_count(study: Study, runs: Sequence[Method]) -> int:
    """How many stages a whole run of the study goes through."""
    rlhf = (1 + bool(study.rlhf.reward_extra_prompts)) if study.rlhf.targets else 0
    names = {method.name for method in runs}
    swept = 1 + len(names.intersection(SWEPT)) if study.sweep.temperatures else 0
    fitted = 1 + (study.reward == "packaged")  # the judge, and the reward
    return fitted + 3 + (study.sft_steps > 0) + rlhf + len(runs) + (OTHER_PAIRS in names) + swept


def measure_start(study: Study, stages: Stages, assets: Assets) -> Measurement:
    """The start model on the held-out prefixes, with as many samples of each as Best-of-N chooses from."""

    def compute(report: Report) -> dict[str, Any]:
        found = measure(
            assets.config, assets.start, None, assets.tokenizer, assets.held_out, assets.raters, study, step=0,
            each=max(study.best_of_n, study.held_out_samples), report=report,
        )  # fmt: skip
        return dataclasses.asdict(found)

    return Measurement(**stages.stage("start-measured", assets.sampled, compute, *JSON))


def run_methods(
    study: Study, runs: Sequence[Method], stages: Stages, assets: Assets, console: Console
) -> dict[Method, Run]:
    """Train what is not kept yet."""
    pairs = {False: assets.examples}
    if any(method.name == OTHER_PAIRS for method in runs):
        pairs[True] = other_preferences(study, stages, assets)
    prepared = _Prepared(study, assets, pairs)
    swept = {id(seeded(runs, name)[0]) for name in SWEPT if seeded(runs, name) and study.sweep.temperatures}
    results = {}
    for method in runs:
        label = method.label.replace(",", "").replace(" ", "-").lower()
        keep = id(method) in swept
        inputs = _inputs(study, assets, method, label) | ({"policy": "kept"} if keep else {})
        whole = method is runs[0]  # its model goes on as a folder

        def compute(report: Report, directory: Path, method: Method = method) -> tuple[list[dict[str, Any]], Any]:
            return _train(study, assets, method, prepared, console, report, directory)

        def save(
            folder: Path, result: tuple[list[dict[str, Any]], Any], keep: bool = keep, whole: bool = whole
        ) -> None:
            rows, final = result
            JSON.save(folder, rows)
            if keep:
                TREE.save(folder, final)
            if whole:
                models.save_pretrained(folder / "model", assets.config, final, assets.tokenizer)

        rows = stages.trained(label, inputs, compute, save, lambda folder: (JSON.load(folder), None))[0]
        results[method] = Run([Measurement(**row) for row in rows], stages.folder(label, inputs), inputs)
    return results


class _Prepared:
    """Pairs with the frozen layers' activations and the reference's log-probs: computed once, if a run is missing."""

    def __init__(self, study: Study, assets: Assets, pairs: Mapping[bool, Sequence[Example]]) -> None:
        self._study, self._assets, self._pairs = study, assets, pairs
        self._found: dict[bool, list[Example]] = {}

    def examples(self, report: Report, *, other: bool) -> list[Example]:
        if other not in self._found:
            config, start = self._assets.config, self._assets.start
            self._found[other] = shared_activations(config, start, self._pairs[other], self._study, report=report)
        return self._found[other]


class _Points:
    """What is measured along a run, by step; in ``folder``, if any, it outlives the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._rows = folder, dict[int, dict[str, Any]]()

    def add(self, step: int, row: dict[str, Any]) -> None:
        self._rows[step] = row
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{step}.json").write_text(json.dumps(row), encoding="utf-8")

    def all(self) -> list[dict[str, Any]]:
        """Of a run that is over: a file that a kill cut short has been written again by then."""
        files = [] if self._folder is None else self._folder.glob("*.json")
        kept = {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in files}
        return [row for _, row in sorted((kept | self._rows).items())]


def _train(
    study: Study,
    assets: Assets,
    method: Method,
    prepared: _Prepared,
    console: Console,
    report: Report,
    directory: Path,
) -> tuple[list[dict[str, Any]], Any]:
    """A run's measurements as JSON, and its policy; ``directory`` is for its checkpoints, where its scale has them.

    What is measured is written there at once: a run that goes on does not measure again what it had.
    """
    config, start, tokenizer, raters = assets.config, assets.start, assets.tokenizer, assets.raters
    objective = method.objective
    total = study.rlhf.updates if isinstance(objective, PPO) else study.steps
    scale = study.rlhf.scale if isinstance(objective, PPO) else study.scale
    kept = scale.kept(directory)
    points = _Points(None if kept is None else kept / "measured")

    measured = study.rlhf.measured if isinstance(objective, PPO) else set()

    def evaluate(step: int, policy: Any) -> None:
        if measured and step not in measured:
            return
        report(step, total, "measuring")
        found = measure(
            config, policy, start, tokenizer, assets.held_out, raters, study, step=step, report=_quiet
        )  # fmt: skip
        points.add(step, dataclasses.asdict(found))

    if isinstance(objective, PPO):
        reward = assets.reward if objective.reward == "learned" else raters.reward
        assert reward is not None
        final, last = train_ppo(
            config, start, assets.training, reward, objective, study, tokenizer, seed=method.seed, evaluate=evaluate,
            evaluate_every=math.gcd(*measured), directory=kept, report=report,
        )  # fmt: skip
        console.print(_ppo_line(method, last), highlight=False, markup=False)
    else:
        examples = prepared.examples(report, other=method.name == OTHER_PAIRS)
        final = train(config, start, examples, method, study, evaluate=evaluate, report=report, directory=kept)
    return points.all(), final


def _quiet(done: int, total: int, note: str = "") -> None:
    """The stage already says that it measures."""


def _inputs(study: Study, assets: Assets, method: Method, label: str) -> dict[str, Any]:
    """What decides a run."""
    own = {"method": dataclasses.asdict(method.objective), "seed": method.seed, "name": label}
    if isinstance(method.objective, PPO):
        inputs = assets.sampled | own | {"rlhf": _ppo_inputs(study), "frozen_layers": study.frozen_layers}
        return inputs | ({"reward model": reward_inputs(study)} if method.objective.reward == "learned" else {})
    return assets.inputs | own | ({"pairs": study.ablations.other_model} if method.name == OTHER_PAIRS else {})


def _ppo_inputs(study: Study) -> dict[str, Any]:
    """What decides a PPO run, beside its target, its seed and its reward."""
    apart = ("targets", "seeds", "true_seeds", "seeds_at")
    values = study.rlhf.inputs.items()
    return {name: value for name, value in values if name not in apart and not name.startswith("reward_")}


def _ppo_line(method: Method, last: Mapping[str, float]) -> str:
    return (
        f"{method.label}: KL {last['objective/kl']:.2f} with coefficient "
        f"{last['objective/kl_coefficient']:.3f}, score {last['objective/scores']:.2f}, explained variance "
        f"{last['val/explained_variance']:.2f}, largest gap to the sampler {last['sampler/log_prob_gap_max']:.1e}"
    )
