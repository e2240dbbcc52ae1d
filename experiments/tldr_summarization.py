"""TL;DR summarisation: win rate against the human reference over temperature (Rafailov et al. 2023, arXiv 2305.18290,
section 6.2, figure 2 right).

Base, SFT, Preferred-FT, PPO, DPO and Best-of-N summarise the held-out posts at five sampling temperatures; two judges
compare every summary with the reference: (S), which captures the important points better, and (C), the same without
what is unimportant or irrelevant. ROUGE stands beside. PPO and DPO are trained with three seeds.

    python -m experiments.tldr_summarization --preset mini --output-dir runs/tldr
        A 0.85M-parameter model and XSum's articles, cut to 16 words, both packaged. The model is too small to have
        learnt to read, so before SFT it repeats passages. The labeller is ROUGE against the reference, over the SFT
        model's own samples; judge (S) is the share of the document's content words, weighted by rarity, that a summary
        has, (C) the same as an F-measure. Two CPU cores, about 6 minutes. Text is garbled at this size: it shows the
        methods, not fluency.
    python -m experiments.tldr_summarization --preset gpu --output-dir runs/tldr-gpu
        The same data with SmolLM2-135M-Instruct, packaged: one GPU, about an hour. It has not been run.
    python -m experiments.tldr_summarization --preset paper --output-dir runs/tldr-paper
        GPT-J 6B, CarperAI/openai_summarize_tldr and the comparisons of openai/summarize_from_feedback from a hub,
        judged by a model behind an OpenAI-compatible endpoint (--judging.model, --judging.base-url; the key comes from
        OPENAI_API_KEY). Eight GPUs with 80 GB, days, most of them PPO's million episodes. Expected by GPT-4 (C) at
        temperature 0: DPO about 61 %, PPO about 57 %; PPO falls to its base model's rate at temperature 1, DPO hardly
        falls; DPO's best is above Best-of-128's. It has not been run.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from and every verdict in
OUTPUT_DIR/verdicts.sqlite: a second run continues, and asks a judge nothing twice. summaries.jsonl holds what every
method wrote, for ``experiments.human_vs_judge``. Every field of the preset is a flag (--help after --preset).
"""

from pathlib import Path

from rich.console import Console

from experiments import _results
from experiments import _tldr_report as report_files
from experiments._command import Command, FirstBatch
from experiments._content_words import ContentWords
from experiments._hindsight import Scale
from experiments._hindsight_tasks import load_model
from experiments._results import Result
from experiments._stages import Stages
from experiments._tldr import Judging, PPORun, Run, Study, comparisons, load_posts
from experiments._tldr_judges import check_judges, judge_pairs, judges_of
from experiments._tldr_runs import run_all
from experiments._tldr_training import demonstrations, preferences

PRESETS = {
    "mini": Study(
        reading=Run(steps=300, batch=64, learning_rate=3e-3, warmup_steps=20),
        # Little: at ten times the rate references, which repeat nothing, make it forget how to read.
        sft=Run(steps=40, learning_rate=1e-4, schedule="cosine"),
        preferred_ft=Run(steps=28, batch=16),
        dpo=Run(steps=28, batch=16, clip_norm=10.0),
        reward=Run(steps=48, batch=16, learning_rate=1e-3, schedule="linear"),
        ppo=PPORun(updates=20, ppo_epochs=2, minibatches=2),
        best_of=(1, 2, 4, 8),
    ),
    "gpu": Study(
        model="smollm2",
        document_words=120,
        max_length=320,
        max_new_tokens=60,
        held_out=256,
        sft_posts=300,
        feedback_posts=440,
        samples_per_post=8,
        sampling_batch=512,
        sft=Run(steps=60, learning_rate=2e-5, schedule="cosine"),
        preferred_ft=Run(steps=60, batch=32, learning_rate=1e-5),
        dpo=Run(steps=60, batch=32, learning_rate=5e-6, clip_norm=10.0),
        reward=Run(steps=80, batch=32, learning_rate=1e-5, schedule="linear"),
        ppo=PPORun(updates=200, episodes=256, minibatches=4, learning_rate=3e-6),
        best_of=(1, 8, 16, 64),
        scale=Scale(dtype="bfloat16", checkpoints=True),
    ),
    "paper": Study(
        model="EleutherAI/gpt-j-6b",
        posts="CarperAI/openai_summarize_tldr",
        comparisons="openai/summarize_from_feedback:comparisons",
        sft_posts=116_722,
        held_out=256,
        max_length=576,
        max_new_tokens=53,
        sampling_batch=512,
        sft=Run(steps=911, batch=128, learning_rate=1e-5, schedule="cosine", warmup_steps=30),
        preferred_ft=Run(steps=1450, batch=64, learning_rate=1e-6, warmup_steps=150, optimizer="rmsprop"),
        dpo=Run(
            steps=1450, batch=64, learning_rate=1e-6, warmup_steps=150, optimizer="rmsprop", clip_norm=10.0
        ),
        reward=Run(steps=1450, batch=64, learning_rate=3e-6, schedule="linear", warmup_steps=0),
        ppo=PPORun(updates=1953, episodes=512, learning_rate=3e-6),
        best_of=(1, 8, 64, 128),
        judging=Judging(model="gpt-4o"),
        scale=Scale(dtype="bfloat16", remat="full", accumulation=8, checkpoints=True),
    ),
}  # fmt: skip


def run(study: Study, output: Path, name: str) -> Result:
    """All stages, the verdicts, the report."""
    if not _results.finished(output, name):  # to report again what is judged, no key is needed
        check_judges(study.judging)
    console = Console()
    stages = Stages(output / "stages", console=console)
    runs = run_all(study, stages, output)
    words = ContentWords.of([post.document for post in (*runs.posts.sft, *runs.posts.feedback)])
    words.save(output / "content_words.json")

    judges = judges_of(study.judging, words)
    judged = judge_pairs(judges, report_files.judged_rows(study, runs), study.judging, output, stages)
    report_files.files(study, runs, judged, output)
    result = report_files.make_result(study, runs, judged, output, preset=name, seconds=stages.seconds)
    console.print(f"{_results.save(output, result)}", highlight=False)
    return result


def first_batch(study: Study) -> FirstBatch:
    """The first rows that DPO learns from; without comparisons, the first that SFT learns from."""
    _, _, tokenizer = load_model(study.model)
    if study.comparisons:
        records = comparisons(study, limit=study.dpo.batch)
        return FirstBatch(preferences(records, tokenizer, study), tokenizer, "comparisons, in the order of the file")
    posts = load_posts(study).windows[: study.sft.batch]
    note = "demonstrations, in the order of the posts; preferences are samples of the model that they make"
    return FirstBatch(demonstrations(posts, tokenizer, study), tokenizer, note)


main = Command(__doc__, "tldr_summarization", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
