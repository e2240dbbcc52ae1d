"""The peer's half of ``benchmarks.ragged_sampling``: transformers' ``generate`` in padded batches; needs no jaxalign.

    PEER/bin/python benchmarks/_transformers_ragged.py WORKLOAD.json

Prompts of a batch are left-padded; each row ends at its own length by a stopping criterion, as it would by its EOS, and
the batch runs to its longest. Prints one JSON line.
"""

import json
import sys
import time

import torch
import transformers


class OwnLength(transformers.StoppingCriteria):
    def __init__(self, width: int, limits: list[int]) -> None:
        self.ends = torch.tensor(limits) + width

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return self.ends <= ids.shape[1]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        work = json.load(file)
    shape = work["shape"]
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=work["vocabulary"], n_positions=shape["positions"], n_embd=shape["width"],
            n_layer=shape["layers"], n_head=shape["heads"],
        )
    ).eval()  # fmt: skip
    pad = work["vocabulary"] - 1
    order = sorted(range(len(work["prompts"])), key=lambda i: len(work["prompts"][i]))
    seconds, cpu = [], []
    with torch.no_grad():
        for _ in range(work["repeats"]):
            start, start_cpu = time.perf_counter(), time.process_time()
            for first in range(0, len(order), work["batch"]):
                rows = order[first : first + work["batch"]]
                width = max(len(work["prompts"][i]) for i in rows)
                ids = torch.full((len(rows), width), pad)
                mask = torch.zeros_like(ids)
                for row, i in enumerate(rows):
                    prompt = work["prompts"][i]
                    ids[row, width - len(prompt) :] = torch.tensor(prompt)
                    mask[row, width - len(prompt) :] = 1
                limits = [work["limits"][i] for i in rows]
                model.generate(
                    ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=max(limits), pad_token_id=pad, eos_token_id=None,
                    stopping_criteria=transformers.StoppingCriteriaList([OwnLength(width, limits)]),
                )  # fmt: skip
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "versions": [torch.__version__, transformers.__version__]}))


if __name__ == "__main__":
    main()
