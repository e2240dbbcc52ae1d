"""The workloads of ``benchmarks.gpu.steps`` in torch: TRL's trainers where TRL is installed, else a plain loop.

    python -m benchmarks.gpu.torch_steps --shape llama-3.2-1b --task dpo

The plain loop is transformers' own model under autocast with checkpointed layers, fused AdamW, and the textbook loss:
what a careful user would write. bfloat16 activations, float32 weights, bfloat16 reference: as on our side. One JSON
line.
"""

import argparse
import json
import statistics
import tempfile
import time
from importlib import metadata
from typing import Any

import torch
import transformers

from benchmarks.gpu._workloads import SHAPES, TASKS, tokens_a_step, utilisation

WARM_UP = 2


def make_model(name: str, dtype: torch.dtype) -> Any:
    """Random weights of the shape, on the GPU."""
    shape = SHAPES[name]
    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size, "hidden_size": shape.width, "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "max_position_embeddings": 2048,
        "tie_word_embeddings": shape.tied,
    }  # fmt: skip
    if shape.model_type == "llama":
        common |= {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim}
    else:
        common |= {"rotary_pct": 0.25}
    config = transformers.AutoConfig.for_model(shape.model_type, **common)
    torch.manual_seed(0)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def answer_log_probs(model: Any, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """Summed log-probabilities of what follows the prompt, ``[B]``."""
    hidden = model.base_model(tokens).last_hidden_state[:, max(prompt - 1, 0) : -1]
    logits = model.get_output_embeddings()(hidden).float()
    picked = logits.gather(-1, tokens[:, max(prompt, 1) :, None])[..., 0]
    return (picked - logits.logsumexp(-1)).sum(-1)


def plain_loop(args: argparse.Namespace) -> list[float]:
    task, shape = TASKS[args.task], SHAPES[args.shape]
    model = make_model(args.shape, torch.float32)
    model.gradient_checkpointing_enable()
    model.train()
    reference = make_model(args.shape, torch.bfloat16).eval() if args.task == "dpo" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    times = []
    for _ in range(args.steps):
        pairs = 2 if args.task == "dpo" else 1
        size = (pairs * task.rows, task.prompt + task.completion)
        tokens = torch.randint(0, min(shape.vocab_size, 50000), size, device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            policy = answer_log_probs(model, tokens, task.prompt)
            if reference is not None:
                with torch.no_grad():
                    held = answer_log_probs(reference, tokens, task.prompt)
                chosen, rejected = (policy - held).chunk(2)
                loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
            else:
                loss = -policy.sum() / (task.rows * (task.completion - 1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def trl_loop(args: argparse.Namespace) -> list[float]:
    """TRL's trainer on the same sizes; a callback times its steps."""
    import datasets
    import trl

    task, shape = TASKS[args.task], SHAPES[args.shape]
    words = min(shape.vocab_size, 50000)
    generator = torch.Generator().manual_seed(0)
    tokenizer = _word_tokenizer(words)

    def text(length: int) -> str:
        return " ".join(str(i) for i in torch.randint(2, words, (length,), generator=generator).tolist())

    times: list[float] = []

    class Timer(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            torch.cuda.synchronize()
            times.append(time.perf_counter() - self.start)

    common = {
        "output_dir": tempfile.mkdtemp(), "max_steps": args.steps, "per_device_train_batch_size": task.rows,
        "bf16": True, "gradient_checkpointing": True, "report_to": "none", "save_strategy": "no",
        "logging_steps": 10**6,
        "learning_rate": 1e-6, "max_length": task.prompt + task.completion, "optim": "adamw_torch_fused",
    }  # fmt: skip
    count = args.steps * task.rows
    model = make_model(args.shape, torch.float32)
    if args.task == "dpo":
        rows = [
            {
                "prompt": text(task.prompt),
                "chosen": " " + text(task.completion - 1),
                "rejected": " " + text(task.completion - 1),
            }
            for _ in range(count)
        ]
        trainer = trl.DPOTrainer(
            model=model, ref_model=make_model(args.shape, torch.bfloat16), args=trl.DPOConfig(**common, beta=0.1),
            train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Timer()],
        )  # fmt: skip
    else:
        rows = [{"text": text(task.completion - 1)} for _ in range(count)]
        trainer = trl.SFTTrainer(
            model=model, args=trl.SFTConfig(**common), train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[Timer()],
        )  # fmt: skip
    trainer.train()
    return times


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _word_tokenizer(words: int) -> transformers.PreTrainedTokenizerFast:
    """A number a word, so that text of n words is n tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    has_trl = _installed("trl") and _installed("datasets")
    times = trl_loop(args) if has_trl else plain_loop(args)
    median = statistics.median(times[WARM_UP:])
    device = torch.cuda.get_device_name()
    print(json.dumps({
        "bench": "step", "framework": "TRL" if has_trl else "torch, plain loop", "shape": args.shape,
        "task": args.task, "tokens_per_s": tokens_a_step(args.task) / median,
        "utilisation": utilisation(SHAPES[args.shape], args.task, median, device),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9, "device": device, "step_s": [round(t, 4) for t in times],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
