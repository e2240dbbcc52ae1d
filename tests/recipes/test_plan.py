"""``recipes.plan``: the step it compiles is the run's, its bytes and FLOPs are those of closed forms."""

import contextlib
import dataclasses
import hashlib
import json
import re

import jax
import numpy as np
import pytest

from jaxalign import models, recipes, sharding, training
from jaxalign.errors import InputError
from jaxalign.recipes import DPOConfig, HindsightConfig, PPOConfig, RewardModelConfig, SFTConfig
from jaxalign.recipes import _fit as fit_module
from jaxalign.recipes import _plan_rows as rows
from jaxalign.recipes import _plan_step as steps
from jaxalign.recipes import _ppo as ppo_module
from jaxalign.recipes._plan_devices import Chip, Slice, parse_devices
from jaxalign.recipes._plan_process import Workers
from jaxalign.recipes.dpo import make_objective as dpo_objective
from jaxalign.recipes.plan import _Planner
from tests.recipes import toy

LENGTH = 32
UNREAD = {"dataset": "d", "output_dir": "o"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.write_model(tmp_path_factory.mktemp("planned"))


class Kept:
    """Workers of which none ends because another number of devices is asked for."""

    def __init__(self, stack):
        self.stack, self.by_count = stack, {}

    def ask(self, devices, request):
        if devices not in self.by_count:
            self.by_count[devices] = self.stack.enter_context(Workers())
        return self.by_count[devices].ask(devices, request)


@pytest.fixture(scope="module")
def workers():
    with contextlib.ExitStack() as stack:
        yield Kept(stack)


@pytest.fixture(scope="module")
def planned(folder, workers):
    """A plan of a config on so many CPU devices, each made once."""
    made = {}

    def make(kind, count=1, **settings):
        length = {} if kind is PPOConfig else {"max_length": LENGTH}
        config = kind(**{**UNREAD, "model": str(folder), **length, "batch_size": 8, **settings})
        if (key := f"{config} {count}") not in made:
            planner = _Planner(config, parse_devices(f"{count}xcpu"), workers, None, None)
            made[key] = planner.plan({}, count)
        return made[key]

    return make


class Stopped(Exception):
    pass


def meaning(text):
    """A lowered program without the names of its inner functions, of which JAX makes one or several alike.

    Whether it shares one depends on whether arguments were arrays or shapes; each is named by what it does instead.
    """
    functions = re.split(r"\n(?=  func\.func )", text)
    names = [re.search(r"@([\w.]+)\(", part)[1] for part in functions[1:]]
    called = {name: name for name in names}
    for _ in names:  # a function's name follows from those of the functions it calls
        bodies = {
            name: re.sub(
                r"[\s}]*$",
                "",
                re.sub(
                    r"@([\w.]+)", lambda found, known=called: "@" + known.get(found[1], found[1]), part.split("(", 1)[1]
                ),
            )
            for name, part in zip(names, functions[1:], strict=True)
        }
        renamed = {
            name: name if name == "main" else hashlib.sha256(bodies[name].encode()).hexdigest() for name in names
        }
        if renamed == called:
            break
        called = renamed
    return {called[name]: bodies[name] for name in names}


def lowered_by(module, monkeypatch, run):
    """The text of the step that a run was about to take, at its own arguments."""
    found = {}

    def instead(step, state, source, *, frozen, **rest):
        found["text"] = step.lower(state, frozen, found["batch"](source)).as_text()
        raise Stopped

    monkeypatch.setattr(module.training, "run_loop", instead)
    with contextlib.suppress(Stopped):
        run(found)
    return found["text"]


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"accumulation": 2, "remat": "full", "lora_rank": 2}, {"frozen_layers": 1, "dtype": "bfloat16"},
        {"reference_update_every": 2, "parameter_dtype": "bfloat16"}, {"mesh": "data=2,fsdp=2,tensor=2"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_planned_is_the_step_that_fit_runs(settings, folder, monkeypatch):
    config = DPOConfig(**UNREAD, model=str(folder), max_length=LENGTH, max_steps=3, batch_size=8 * 2, **settings)
    shape = toy.SHAPES["llama"]
    examples = [rows.longest_example(config, shape, None, None)] * config.batch_size

    def run(found):
        found["batch"] = next
        recipes.fit(
            shape, toy.params("llama"), examples, lambda split: dpo_objective(split, config), config, report=print
        )

    planned = steps.lower_step(config, steps.PlannedModel(shape, "float32"))
    assert meaning(planned.lowered.as_text()) == meaning(lowered_by(fit_module, monkeypatch, run))


def test_what_is_planned_is_the_update_that_fit_ppo_runs(folder, monkeypatch):
    config = PPOConfig(
        **UNREAD, model=str(folder), max_steps=3, batch_size=16, minibatches=2, reward="a:b", max_prompt_length=16,
        max_new_tokens=8,
    )  # fmt: skip
    shape = toy.SHAPES["llama"]
    prompts = [recipes._ppo.Prompt([1] * 16, "a")] * 16

    def run(found):
        found["batch"] = lambda source: rows.rows_of(rows.rollout_batch(16, 8), 16)
        recipes.fit_ppo(
            shape, toy.params("llama"), prompts, lambda prompts, texts: [0.0] * len(texts), config, decode=str,
            stop_tokens=[0], report=print,
        )  # fmt: skip

    planned = steps.lower_step(config, steps.PlannedModel(shape, "float32"))
    assert meaning(planned.lowered.as_text()) == meaning(lowered_by(ppo_module, monkeypatch, run))


def shard_bytes(tree, devices):
    """Bytes of a device where every leaf of more than one axis is split over all, and the rest copied."""
    return sum(leaf.size * 4 // (devices if leaf.ndim > 1 else 1) for leaf in jax.tree.leaves(tree))


def test_bytes_of_arguments_and_gradients_are_those_of_the_closed_form(planned):
    params = toy.params("llama")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    found = planned(DPOConfig)
    assert found.parameters == found.trainable == count
    assert found.memory["parameters"] == found.memory["reference"] == found.memory["gradients"] == 4 * count
    assert found.memory["optimizer"] == 4 * count + 4  # RMSprop: one moment, and the schedule's counter
    assert found.memory["frozen"] == 0
    assert sum(found.memory.values()) == found.total


def test_an_adapter_trains_and_the_base_is_the_reference(planned):
    count = sum(leaf.size for leaf in jax.tree.leaves(toy.params("llama")))
    shape = toy.SHAPES["llama"]
    d, heads, groups, f = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.mlp_width
    ends = [(d, heads), (d, groups), (d, groups), (heads, d), (d, f), (d, f), (f, d)]
    adapter = shape.layers * 2 * sum(map(sum, ends))
    found = planned(DPOConfig, lora_rank=2)
    assert found.trainable == adapter
    assert found.memory["parameters"] == found.memory["gradients"] == 4 * adapter
    assert found.memory["frozen"] == 4 * count
    assert found.memory["reference"] == 0


def test_the_best_so_far_lies_beside_a_reward_model_that_is_evaluated(planned):
    found = planned(RewardModelConfig, eval_dataset="e", eval_every=2)
    assert found.memory["best so far"] == found.memory["parameters"] > 0
    assert "best so far" not in planned(RewardModelConfig).memory


def test_a_classifier_that_rates_lies_beside_the_update(folder, planned, tmp_path):
    config, params = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(0))
    models.save_reward_model(tmp_path, models.RewardModel(config, params), toy.tokenizer())
    rated = planned(PPOConfig, reward=str(tmp_path), max_prompt_length=8, max_new_tokens=8)
    assert rated.memory["reward model"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    by_function = planned(PPOConfig, reward="a:b", max_prompt_length=8, max_new_tokens=8)
    assert "reward model" not in by_function.memory
    with pytest.raises(InputError, match=r"^--reward: .*score head"):
        planned(PPOConfig, reward=str(folder), max_prompt_length=8, max_new_tokens=8)


def forward_flops(shape, rows, tokens, scored):
    """Of matrix products: 2 N a token in the layers, 4 T^2 H K a row in attention, 2 V D a scored position."""
    layer = shape.width * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads) + 3 * shape.width * shape.mlp_width
    attention = 4 * tokens * tokens * shape.heads * shape.head_dim
    return rows * (shape.layers * (2 * layer * tokens + attention) + 2 * shape.vocab_size * shape.width * scored)


def test_flops_are_those_of_the_formula(planned):
    """A step is three forward passes, and one more of the reference."""
    shape = toy.SHAPES["llama"]
    plain = planned(SFTConfig)
    assert (plain.row_tokens, plain.row_targets) == (LENGTH, LENGTH)
    assert plain.flops == 3 * forward_flops(shape, 8, LENGTH, LENGTH)
    assert plain.recomputed_flops == 0
    # A pair's row: half of max_length its prompt, both answers behind it.
    pairs = planned(DPOConfig)
    assert (pairs.row_tokens, pairs.row_targets) == (LENGTH * 3 // 2, LENGTH)
    whole = forward_flops(shape, 8, LENGTH * 3 // 2, LENGTH)
    assert pairs.flops == 4 * whole
    assert planned(DPOConfig, reference_log_probs="cached").flops == 3 * whole


def test_accumulation_changes_the_memory_and_not_the_work(planned):
    whole, parts = planned(SFTConfig), planned(SFTConfig, accumulation=4)
    assert parts.flops == whole.flops
    assert parts.memory["activations"] < whole.memory["activations"] / 3


def test_remat_keeps_less_and_computes_more(planned):
    kept = {remat: planned(SFTConfig, remat=remat) for remat in ("none", "dots", "full")}
    activations = [kept[remat].memory["activations"] for remat in ("none", "dots", "full")]
    assert activations == sorted(activations, reverse=True)
    assert len(set(activations)) == 3
    assert kept["none"].flops < kept["dots"].flops < kept["full"].flops


@pytest.mark.parametrize(
    ("kind", "devices", "rows"), [(SFTConfig, 1, 8), (DPOConfig, 2, 2)], ids=["eight rows a device", "one row a device"]
)
def test_what_remat_computes_again_is_no_useful_work(kind, devices, rows, planned):
    """One row a device is an axis of one, without which XLA writes attention's products anew, and unnamed."""
    plain = planned(kind, devices, batch_size=rows)
    for remat in ("dots", "full"):
        again = planned(kind, devices, batch_size=rows, remat=remat)
        assert again.recomputed_flops == again.flops - plain.flops > 0
        assert again.utilisation * again.flops == pytest.approx(plain.utilisation * plain.flops)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RewardModelConfig, {}),
        (HindsightConfig, {"dataset": ("d",)}),
        (HindsightConfig, {"dataset": ("d",), "pretraining_dataset": "t", "pretraining_length": 16}),
    ],
    ids=["reward", "hindsight", "hindsight with text"],
)
def test_every_recipe_has_a_plan(kind, settings, planned):
    found = planned(kind, **settings)
    assert found.flops > 0
    assert found.total == sum(found.memory.values())
    assert found.memory["reference"] == 0


def test_a_mesh_divides_what_lies_on_it_and_names_its_traffic(planned):
    params = toy.params("llama")
    found = planned(SFTConfig, 4, mesh="fsdp=2,tensor=2", batch_size=8)
    assert {axis: size for axis, size in found.mesh.items() if size > 1} == {"fsdp": 2, "tensor": 2}
    assert set(found.mesh) == set(sharding.MESH_AXES)
    matrices = sum(leaf.size * 4 for leaf in jax.tree.leaves(params) if leaf.ndim > 2)
    assert found.memory["parameters"] < matrices  # all but norms is split, most of it twice
    alone = planned(SFTConfig)
    assert alone.flops / 4 <= found.flops < alone.flops / 2  # nothing of weight is computed twice
    assert not alone.network
    axes = {network.axes for network in found.network}
    assert {("fsdp",), ("tensor",)} <= axes
    assert all(network.bytes > 0 for network in found.network)


def test_what_does_not_fit_gets_the_first_flags_that_make_it_fit(folder, workers, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8)
    cpu = parse_devices("cpu")
    asked, full = planned(SFTConfig), planned(SFTConfig, remat="full")
    small = Slice(dataclasses.replace(cpu.chip, memory=(asked.total + full.total) // 2), 1)
    planner = _Planner(config, small, workers, None, None)
    found = planner.suggest(planner.plan({}, 1))
    assert not found.fits
    assert found.change[0].startswith("--remat")
    assert found.changed is not None
    assert found.changed.fits
    assert found.devices_needed is None
    assert json.loads(json.dumps(found.as_json()))["changed"]["fits"]


def test_more_devices_keep_only_the_changes_that_they_need(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8, mesh="data=2")
    planner = _Planner(config, Slice(Chip("small", 1, 1.0, 1.0, 1.0, 1.0, 1.0), 2), workers, None, None)

    def fits(change, count):
        return count == 4 and change.get("dtype") == "bfloat16"

    found, _ = only_where(planned(SFTConfig, 2), planner, monkeypatch, fits)
    assert found.devices_needed == 4
    assert set(found.change) == {"--dtype bfloat16", "--mesh fsdp=4"}


def test_more_of_this_machines_devices_have_no_more_memory(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8)
    planner = _Planner(config, Slice(Chip("cpu", 1, 1.0, 1.0, 1.0, 1.0, 1.0), 2), workers, None, None)
    found, tried = only_where(planned(SFTConfig, 2), planner, monkeypatch, lambda change, count: count > 2)
    assert found.devices_needed is None
    assert all(count == 2 for _, count in tried)


def test_what_nothing_makes_fit_says_how_many_devices_would(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=4)
    planner = _Planner(config, Slice(Chip("small", 1, 1.0, 1.0, 1.0, 1.0, 1.0), 2), workers, None, None)
    counted = []

    def only_on_eight(change, count):
        counted.append(count)
        return dataclasses.replace(asked, fits=count >= 8)

    asked = planned(SFTConfig, 2)
    monkeypatch.setattr(planner, "plan", only_on_eight)
    found = planner.suggest(asked)
    assert found.devices_needed == 8
    assert counted[-1] == 8
    assert "--batch-size 8" in found.change


def only_where(asked, planner, monkeypatch, fits):
    """The suggestion of a planner whose changes fit, fail or die as ``fits(change, count)`` says; what it tried."""
    tried = []

    def answer(change, count):
        tried.append((change, count))
        return dataclasses.replace(asked, fits=fits(change, count))

    monkeypatch.setattr(planner, "plan", answer)
    return planner.suggest(asked), tried


def test_more_devices_get_rows_that_divide_into_micro_batches_too(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8, accumulation=4)
    planner = _Planner(config, Slice(Chip("small", 1, 1.0, 1.0, 1.0, 1.0, 1.0), 2), workers, None, None)
    found, _ = only_where(
        planned(SFTConfig, 2), planner, monkeypatch, lambda change, count: change.get("batch_size") == 4 * count
    )
    assert found.devices_needed == 4
    assert "--batch-size 16" in found.change


def test_more_devices_get_the_largest_sampling_batch_that_fits(folder, workers, monkeypatch, planned):
    sizes = {"batch_size": 256, "sampling_batch": 256}
    config = PPOConfig(**UNREAD, model=str(folder), reward="a:b", **sizes)
    planner = _Planner(config, Slice(Chip("small", 1, 1.0, 1.0, 1.0, 1.0, 1.0), 1), workers, None, None)

    def fits(change, count):
        return count == 8 and change.get("sampling_batch", 256) <= 64

    found, tried = only_where(planned(SFTConfig), planner, monkeypatch, fits)
    assert found.devices_needed == 8
    assert found.change == ("--sampling-batch 64", "--mesh fsdp=8")
    assert min(change.get("sampling_batch", 256) for change, count in tried if count == 8) == 8  # a row a device


def test_an_adapter_is_tried_after_all_that_leaves_the_method_alone(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8)
    asked = planned(SFTConfig, 2)
    chip = dataclasses.replace(parse_devices("cpu").chip, memory=asked.total)  # any change could do
    planner = _Planner(config, Slice(chip, 2), workers, None, None)
    _, tried = only_where(dataclasses.replace(asked, fits=False), planner, monkeypatch, lambda change, count: False)
    here = [change for change, count in tried if count == 2]
    first = next(place for place, change in enumerate(here) if "lora_rank" in change)
    assert first > 8
    assert all("lora_rank" in change for change in here[first:] if "batch_size" not in change)


def test_a_change_at_which_the_compiler_dies_is_named_and_the_plan_stands(folder, workers, monkeypatch, planned):
    config = SFTConfig(**UNREAD, model=str(folder), max_length=LENGTH, batch_size=8)
    asked = planned(SFTConfig, 2)
    planner = _Planner(
        config, Slice(dataclasses.replace(parse_devices("cpu").chip, memory=asked.total), 2), workers, None, None
    )

    def fits(change, count):
        if change == {"remat": "dots"}:
            raise RuntimeError("the process that compiles the plan died")
        return change == {"remat": "full"}

    found, _ = only_where(dataclasses.replace(asked, fits=False), planner, monkeypatch, fits)
    assert found.change == ("--remat full",)
    assert found.failed == ("--remat dots on 2",)
    assert found.memory == asked.memory


def test_a_sequence_axis_pads_rows_and_divides_them(planned):
    found = planned(SFTConfig, 3, mesh="fsdp=1,sequence=3", batch_size=3)
    assert found.row_tokens % 3 == 0
    assert found.row_tokens >= LENGTH
    whole = planned(SFTConfig, 1, batch_size=3)
    assert found.memory["batch"] < whole.memory["batch"] / 2


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"batch_size": 7}, "--batch-size"), ({"max_length": 128}, "--max-length"), ({"mesh": "fsdp=3"}, "--mesh")],
)
def test_what_the_run_would_refuse_the_plan_refuses(settings, flag, planned):
    with pytest.raises(InputError, match=f"^{flag}"):
        planned(SFTConfig, 2, **settings)


def test_times_are_bounds_of_published_peaks(planned):
    found = dataclasses.replace(
        planned(SFTConfig), devices=parse_devices("H100"), compute_seconds=2.0, memory_seconds=1.0, network_seconds=4.0
    )
    assert (found.step_seconds, found.bound) == (4.0, "network")
    assert found.tokens_per_second == 8 * LENGTH / 4.0
    assert found.utilisation == pytest.approx(0.5)


def test_the_keys_of_a_state_are_counted():
    """A typed key is eight bytes, the step's number four: the categories leave nothing out."""
    state = training.state_shapes({"a": jax.ShapeDtypeStruct((2,), np.float32)}, training.make_optimizer(
        training.OptimizerConfig(optimizer="sgd"), 1)[0])  # fmt: skip
    layout = jax.tree.map(lambda _: sharding.replicated(sharding.make_mesh()), state)
    assert steps._of_state(state, layout)["counters"] == 8 + 4


@pytest.mark.parametrize(
    ("kind", "settings", "platform", "own"),
    [
        (SFTConfig, {}, "tpu", True),
        (SFTConfig, {}, "cpu", False),
        (SFTConfig, {"max_length": 100}, "tpu", False),  # no multiple of the kernel's block
        (SFTConfig, {"attention": "xla"}, "tpu", False),
        (SFTConfig, {"dtype": "bfloat16"}, "gpu", False),  # rows carry ids of examples: more than causal
        (SFTConfig, {"dtype": "bfloat16", "attention": "cudnn"}, "gpu", True),
        (DPOConfig, {}, "tpu", False),  # branches
        (DPOConfig, {"pair_layout": "two_rows"}, "tpu", True),
        (DPOConfig, {"pair_layout": "two_rows", "max_length": 64}, "tpu", False),  # two rows of 64, not one of 128
        (DPOConfig, {"dtype": "bfloat16", "attention": "cudnn"}, "gpu", True),  # which takes any mask
        (HindsightConfig, {"dataset": ("d",)}, "tpu", False),  # a mask of its own
        (HindsightConfig, {"dataset": ("d",), "forget_max_ratio": 0.0}, "tpu", True),
        (PPOConfig, {}, "tpu", True),
        (PPOConfig, {"attention": "splash"}, "tpu", True),
        (PPOConfig, {"attention": "xla"}, "tpu", False),
        (PPOConfig, {"dtype": "bfloat16", "attention": "cudnn"}, "gpu", True),
    ],
    ids=str,
)
def test_a_kernel_of_the_chips_own_is_known(kind, settings, platform, own):
    assert for_a_chip(kind, settings, platform).own_kernel is own


@pytest.mark.parametrize(
    ("kind", "settings", "platform", "obstacle"),
    [
        (SFTConfig, {"dtype": "bfloat16", "attention": "cudnn"}, "tpu", "no NVIDIA GPU"),
        (SFTConfig, {"attention": "cudnn"}, "gpu", "activations are float32"),
        (SFTConfig, {"attention": "splash", "max_length": 100}, "gpu", "104 tokens"),
        (DPOConfig, {"attention": "splash"}, "tpu", "branches"),
        (
            HindsightConfig,
            {
                "dataset": ("d",), "forget_max_ratio": 0.0, "pretraining_dataset": "t", "pretraining_length": 100,
                "attention": "splash",
            },
            "tpu",
            "100 tokens",
        ),
        (PPOConfig, {"attention": "splash", "max_new_tokens": 8}, "tpu", "104 tokens"),
        (PPOConfig, {"attention": "cudnn"}, "gpu", "activations are float32"),
    ],
    ids=str,
)  # fmt: skip
def test_a_kernel_that_cannot_do_what_the_run_asks_is_refused(kind, settings, platform, obstacle):
    with pytest.raises(InputError, match=rf"^--attention {settings['attention']}: .*{obstacle}"):
        for_a_chip(kind, settings, platform)


@pytest.mark.parametrize("chip", ["A100", "H100"])
def test_what_cudnn_takes_is_asked_of_the_chip(chip):
    def plan():
        settings = {"dtype": "bfloat16", "attention": "cudnn"}
        return for_a_chip(SFTConfig, settings, "gpu", head_dim=256, device_kind=chip)

    if chip == "H100":
        assert plan().own_kernel
    else:
        with pytest.raises(InputError, match="256 dimensions"):
            plan()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SFTConfig, {"attention": "cudnn", "mesh": "sequence=2"}, "--attention cudnn: --mesh sequence=2 splits"),
        (PPOConfig, {"attention": "splash", "mesh": "sequence=2"}, "--attention splash: --mesh sequence=2 splits"),
        (PPOConfig, {"attention": "ring"}, "--attention ring: rows of tokens are whole"),
        (PPOConfig, {"minibatches": 4, "mesh": "fsdp=4"}, "--batch-size: 8 episodes do not divide"),
    ],
    ids=str,
)
def test_a_mesh_that_the_run_would_refuse_is_refused(kind, settings, message):
    with pytest.raises(InputError, match=f"^{message}"):
        for_a_chip(kind, settings, "cpu")


def for_a_chip(kind, settings, platform, *, head_dim=8, device_kind=""):
    """The step of rows of 128 tokens, unless the settings say more, planned for a chip."""
    length = {"max_prompt_length": 96, "max_new_tokens": 32, "reward": "a:b"}
    if kind is not PPOConfig:
        length = {"max_length": 128}
    config = kind(**{**UNREAD, "model": "m", "batch_size": 8, "mesh": "data=1", **length, **settings})
    shape = toy.SHAPES["llama"].replace(max_positions=128, head_dim=head_dim)
    model = steps.PlannedModel(shape, "float32")
    return steps.lower_step(config, model, platform=platform, device_kind=device_kind or platform)
