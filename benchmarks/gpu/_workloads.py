"""The workloads, without any framework: two published shapes, two tasks, and what they cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A published model's numbers; weights are random."""

    model_type: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    gated: bool
    tied: bool

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the matrix products every token passes, the unembedding left out."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.mlp_width)


@dataclass(frozen=True)
class Task:
    """One update: ``rows`` rows (SFT), or pairs (DPO), of ``prompt`` and ``completion`` tokens."""

    rows: int
    prompt: int
    completion: int


SHAPES = {
    "llama-3.2-1b": Shape("llama", 128256, 2048, 16, 32, 8, 64, 8192, gated=True, tied=True),
    "pythia-1.4b": Shape("gpt_neox", 50304, 2048, 24, 16, 16, 128, 8192, gated=False, tied=False),
}
TASKS = {"sft": Task(rows=8, prompt=0, completion=1024), "dpo": Task(rows=8, prompt=512, completion=512)}
# Dense bfloat16 products a second, from the makers' data sheets; the longest name found in the device's name counts.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
# Bytes a second from the device's own memory, from the same sheets.
PEAK_BANDWIDTH = {"H200": 4.8e12, "GH200": 4.0e12, "H100": 3.35e12, "A100": 2.0e12, "L40S": 864e9, "B200": 8e12}


def tokens_a_step(task_name: str) -> int:
    """Tokens as one that does not share prompts counts them: two rows of prompt + completion a pair."""
    task = TASKS[task_name]
    return task.rows * (task.prompt + task.completion) * (2 if task_name == "dpo" else 1)


def model_flops(shape: Shape, task_name: str) -> float:
    """Floating-point operations that one update needs (the model's, not the program's: no rematerialisation).

    A pass forward is 2 N a token, N the parameters of the products, + 2 L H K (t + 1) for causal attention over t
    tokens (scores and mixture, half of the square); backward is twice that. DPO adds the reference's pass forward.
    Only scored positions pass the unembedding. Prompts count once a row, shared or not: tokens as above.
    """
    task = TASKS[task_name]
    length = task.prompt + task.completion
    rows = task.rows * (2 if task_name == "dpo" else 1)
    attention = 2 * shape.layers * shape.heads * shape.head_dim * (length + 1)
    body = rows * length * (2 * shape.matrix_parameters + attention)
    head = rows * task.completion * 2 * shape.vocab_size * shape.width
    return (body + head) * (4 if task_name == "dpo" else 3)


def utilisation(shape: Shape, task_name: str, seconds: float, device: str) -> float | None:
    """Model-FLOPs utilisation of the device's dense bfloat16 peak; None where the peak is not known."""
    peak = _of_device(PEAK_FLOPS, device)
    return None if peak is None else model_flops(shape, task_name) / seconds / peak


def bandwidth(device: str) -> float | None:
    """Bytes a second that the device's memory delivers; None where it is not known."""
    return _of_device(PEAK_BANDWIDTH, device)


def _of_device(known: dict[str, float], device: str) -> float | None:
    # The longest name first: a GH200's has H200 in it.
    return next((known[name] for name in sorted(known, key=len, reverse=True) if name in device), None)
