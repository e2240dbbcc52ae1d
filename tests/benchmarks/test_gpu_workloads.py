"""The floating-point operations that the GPU benchmark divides by, against what XLA counts in the compiled step."""

import dataclasses
import json

import jax
import pytest

from benchmarks.gpu import _tables, _workloads, sampling, steps
from jaxalign import models

TINY = dataclasses.replace(
    _workloads.SHAPES["llama-3.2-1b"],
    vocab_size=512, width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp_width=256,
)  # fmt: skip


def test_matrix_parameters_are_those_of_the_model(monkeypatch):
    monkeypatch.setitem(_workloads.SHAPES, "llama-3.2-1b", TINY)
    config = steps.model_config("llama-3.2-1b", attention="auto", remat="none", dtype="float32")
    stacks = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))["stacks"]
    matrices = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(stacks) if path[-1].key == "kernel"]
    assert TINY.matrix_parameters == sum(matrices)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "pythia-1.4b"])
def test_published_sizes(name):
    """The products of Llama-3.2-1B have 0.97e9 parameters without the embedding, those of Pythia-1.4B 1.21e9."""
    expected = {"llama-3.2-1b": 0.973e9, "pythia-1.4b": 1.208e9}[name]
    assert _workloads.SHAPES[name].matrix_parameters == pytest.approx(expected, rel=0.001)


def test_the_count_of_a_forward_pass(monkeypatch):
    """One pass forward is a third of an SFT step; XLA counts the whole square of attention and a few norms more."""
    monkeypatch.setitem(_workloads.SHAPES, "llama-3.2-1b", TINY)
    monkeypatch.setitem(_workloads.TASKS, "sft", _workloads.Task(rows=2, prompt=0, completion=64))
    config = steps.model_config("llama-3.2-1b", attention="xla", remat="none", dtype="float32")
    # One layer a program: XLA counts a scan's body once.
    counted = 0.0
    for layers in (1, 2):
        one = config.replace(layers=layers, stacks=(1,) * layers)
        params = jax.eval_shape(lambda one=one: models.init(one, jax.random.key(0)))
        tokens = jax.ShapeDtypeStruct((2, 64), "int32")
        lowered = jax.jit(lambda p, t, one=one: models.logits(one, p, t)).lower(params, tokens)
        flops = lowered.compile().cost_analysis()["flops"]
        counted = flops if layers == 1 else counted + (TINY.layers - 1) * (flops - counted)
    needed = _workloads.model_flops(TINY, "sft") / 3
    assert 1.0 <= counted / needed <= 1.15


def test_the_sampling_part_runs_and_its_rows_make_a_table(monkeypatch, capsys):
    monkeypatch.setitem(_workloads.SHAPES, "llama-3.2-1b", TINY)
    monkeypatch.setattr(
        "sys.argv", ["sampling", "--shape", "llama-3.2-1b", "--requests", "6", "--batch", "4", "--repeats", "1"]
    )
    sampling.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["form"] for row in rows] == ["engine", "plain"]
    assert all(row["share_of_bandwidth"] is None for row in rows)  # a CPU is in no table
    lines = _tables.sampling_table(rows)
    assert "engine / plain" in lines[-2]


def test_devices_are_known_by_their_longest_name():
    assert _workloads.bandwidth("NVIDIA GH200 480GB") == 4.0e12
    assert _workloads.bandwidth("NVIDIA H200") == 4.8e12
