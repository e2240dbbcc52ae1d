"""The parts of a plan that need no compiler: chips, named models, replica groups, costs and peaks of small programs."""

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.recipes import DPOConfig, PPOConfig, SFTConfig
from jaxalign.recipes._plan_changes import apply_changes, changes_of, flags_of, growing
from jaxalign.recipes._plan_cost import count_cost
from jaxalign.recipes._plan_hlo import Shape, parse_module, replica_groups
from jaxalign.recipes._plan_memory import allocated_bytes, peak_of_live_ranges
from jaxalign.recipes._plan_models import config_of, model_dtype, read_model
from jaxalign.recipes._plan_process import Workers
from jaxalign.recipes._plan_worker import decode, encode
from jaxalign.recipes.plan import CHIPS, NAMED, parse_devices

UNREAD = {"model": "gpt2", "dataset": "d", "output_dir": "o"}


@pytest.mark.parametrize(
    ("text", "chip", "count"),
    [
        ("8xH100", "H100", 8), ("H200", "H200", 1), ("8 x a100", "A100", 8), ("v5e-16", "v5e", 16),
        ("v5litepod-8", "v5e", 8), ("v6e-256", "v6e", 256), ("v5p-256", "v5p", 128), ("256xv5p", "v5p", 256),
        ("4xcpu", "cpu", 4),
    ],
)  # fmt: skip
def test_devices_as_people_write_them(text, chip, count):
    found = parse_devices(text)
    assert (found.chip.name, found.count) == (chip, count)
    assert bool(found.note) == ("v5p-" in text)


@pytest.mark.parametrize("text", ["", "8xB9000", "0xH100", "v5p-7", "8x", "H100x8x2"])
def test_devices_that_are_not_known_name_the_flag(text):
    with pytest.raises(InputError, match=r"^--devices"):
        parse_devices(text)


def test_every_chip_has_less_room_than_memory_and_a_slower_network_than_memory():
    for chip in CHIPS.values():
        assert 0 < chip.room < chip.memory
        assert (chip.outside or chip.inside) <= chip.inside < chip.bandwidth < chip.float32 <= chip.bfloat16


def test_nvidias_chips_have_the_memory_that_nvidia_smi_reports():
    held = {name: CHIPS[name].memory / 2**20 for name in ("A100", "H100", "H200")}
    assert held == {"A100": 81920, "H100": 81559, "H200": 143771}


# What the models' cards say, to the last parameter.
PARAMETERS = {
    "gpt2": 124_439_808, "smollm2-135m": 134_515_008, "pythia-2.8b": 2_775_208_960, "qwen2.5-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_named_models_are_read_by_their_families(name):
    fields = read_model(name.upper())
    config = config_of(fields, name)
    shapes = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert model_dtype(fields) in ("float32", "bfloat16", "float16")
    assert count == PARAMETERS.get(name, count)
    written = name.rsplit("-", 1)[-1]
    if written[-1] in "bm" and written[0].isdigit():
        size = float(written[:-1]) * {"b": 1e9, "m": 1e6}[written[-1]]
        assert abs(count / size - 1) < 0.33  # names round: gemma-2-2b has 2.6, qwen3-0.6b 0.596


def test_a_model_that_is_not_known_names_the_flag_and_the_nearest():
    with pytest.raises(InputError, match=r"--model lama-3-8b: .* did you mean llama-3-8b"):
        read_model("lama-3-8b")
    with pytest.raises(InputError, match="--reward-model"):
        read_model("nothing-like-it", flag="--reward-model")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups={}, x=1", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0},{2,2}}, x=1", [[0, 1], [1, 0]]),
    ],
)
def test_replica_groups_in_every_spelling(text, groups):
    np.testing.assert_array_equal(replica_groups(text, 4), groups)


def test_replica_groups_in_another_spelling_are_an_error():
    with pytest.raises(ValueError, match="spelling"):
        replica_groups("replica_groups=?, x=1", 4)


PROGRAM = """HloModule step, is_scheduled=true

%body (arg: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %arg = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%arg), index=1
  %dot = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="a/rematted_computation/dot"}
  %sum = f32[8,8]{1,0} all-reduce(%dot), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%i, %sum)
}

%condition (arg.1: (s32[], f32[8,8])) -> pred[] {
  %arg.1 = (s32[], f32[8,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%part (p: f32[8,8], at: s32[]) -> f32[2,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %slice = f32[2,8]{1,0} dynamic-slice(%p, %at, %at), dynamic_slice_sizes={2,8}
}

ENTRY %main (a: f32[8,8]) -> f32[2,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[8,8]{1,0} get-tuple-element(%loop), index=1
  %all = f32[8,8]{1,0} all-reduce(%last), replica_groups={{0,2},{1,3}}, to_apply=%add
  ROOT %own = f32[2,8]{1,0} fusion(%all, %zero), kind=kLoop, calls=%part
}
"""  # noqa: E501


def test_costs_count_loops_and_name_axes():
    cost = count_cost(parse_module(PROGRAM), {"data": 2, "tensor": 2})
    assert cost.flops == cost.recomputed_flops == 5 * 2 * 8**3
    matrix = 4 * 8 * 8
    in_loop = cost.traffic["all-reduce", ("tensor",), 2]
    assert (in_loop.count, in_loop.bytes, in_loop.span) == (5, 5 * matrix, 2)  # 2 (n - 1) / n of a matrix
    # Of what is summed only a slice is read: half the traffic, as an accelerator's compiler makes it.
    scattered = cost.traffic["reduce-scatter", ("data",), 2]
    assert (scattered.count, scattered.bytes, scattered.span) == (1, matrix / 2, 4)
    assert cost.bytes == 5 * 3 * matrix + (5 + 1) * 2 * matrix


def test_a_part_that_is_read_without_an_instruction_of_its_own():
    old = "  %x = f32[8,8]{1,0} get-tuple-element(%arg), index=1\n"
    assert old in PROGRAM
    newer = parse_module(PROGRAM.replace(old, "").replace("%x", "%arg#1"))
    assert count_cost(newer, {"data": 2, "tensor": 2}) == count_cost(parse_module(PROGRAM), {"data": 2, "tensor": 2})
    part = newer.computations["body"].instructions["arg#1"]
    assert (part.opcode, part.shapes, part.operands) == ("get-tuple-element", (Shape("f32", (8, 8)),), ("arg",))


def test_a_loop_of_unknown_length_runs_as_often_as_said():
    module = parse_module(PROGRAM.replace("known_trip_count", "another"))
    assert count_cost(module, {"data": 2, "tensor": 2}, unknown_trips=7).flops == 7 * 2 * 8**3


LIVE = """HloLiveRange (max 6):
  InstructionSequence:
    0:p
    1:copied
    2:gathered
    3:made
    4:product
    5:result
  BufferLiveRange:
    p{}:0-6
    copied{}:1-5
    gathered{}:2-4
    made{}:3-4
    product{}:4-5
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 400, parameter 0, shape |f32[10,10]| at ShapeIndex {}:
 value: <1 p @0> (size=400,offset=0): f32[10,10]{1,0}
allocation 1: size 2000, preallocated-temp:
 value: <2 copied @0> (size=400,offset=0): f32[10,10]{1,0}
 value: <3 gathered @0> (size=800,offset=400): f32[20,10]{1,0}
 value: <4 made @0> (size=400,offset=1200): f32[10,10]{1,0}
 value: <5 product @0> (size=400,offset=1200): f32[10,10]{1,0}
"""
STRAIGHT = """HloModule straight, is_scheduled=true

ENTRY %main (p: f32[10,10]) -> f32[10,10] {
  %p = f32[10,10]{1,0} parameter(0)
  %copied = f32[10,10]{1,0} copy(%p)
  %gathered = f32[20,10]{1,0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
  %made = f32[10,10]{1,0} custom-call(%p), custom_call_target="x"
  %product = f32[10,10]{1,0} dot(%made, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %result = f32[10,10]{1,0} add(%copied, %product)
}
"""


def test_the_peak_is_without_copies_of_arguments_and_with_late_gathers():
    module = parse_module(STRAIGHT)
    assert allocated_bytes(ASSIGNMENT, arguments=True) == 400
    assert allocated_bytes(ASSIGNMENT, arguments=False) == 2000
    # At the product: what is gathered, and the product in the place of what was made. The copy is the argument.
    assert peak_of_live_ranges(LIVE, ASSIGNMENT, module).total == 800 + 400
    kept_apart = ASSIGNMENT.replace("product @0> (size=400,offset=1200)", "product @0> (size=400,offset=1600)")
    assert peak_of_live_ranges(LIVE, kept_apart, module).total == 800 + 400 + 400


@pytest.mark.parametrize(
    "config",
    [
        SFTConfig(**UNREAD, frozen_parameters=("a", "b")), DPOConfig(**UNREAD, length_desensitised=0.5),
        PPOConfig(**UNREAD, reward_model="r"),
    ],
    ids=["sft", "dpo", "ppo"],
)  # fmt: skip
def test_configs_survive_json(config):
    again = decode(type(config), encode(config))
    assert encode(again) == encode(config)
    assert again.optimizer == config.optimizer


def test_changes_cost_little_first_and_are_such_as_the_run_takes():
    config = DPOConfig(**UNREAD, batch_size=32)
    mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    found = changes_of(config, mesh=mesh, has_frozen=True, model_dtype="float32")
    assert [flags_of(change) for change in found] == [
        ("--remat dots",), ("--remat full",), ("--accumulation 4",), ("--mesh fsdp=8",),
        ("--reference-log-probs cached",), ("--dtype bfloat16",), ("--dtype bfloat16", "--frozen-dtype bfloat16"),
        ("--mesh fsdp=1,tensor=8",), ("--state-dtype bfloat16",), ("--parameter-dtype bfloat16",), ("--lora-rank 16",),
    ]  # fmt: skip
    for change in growing(found, config):
        apply_changes(config, change)  # which its own checks take
    coupled = DPOConfig(**UNREAD, batch_size=32, loss=("kto",))
    assert {"accumulation": 4} not in changes_of(coupled, mesh=mesh, has_frozen=True, model_dtype="float32")


def test_changes_keep_the_sequence_axis():
    mesh = {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 2}
    found = changes_of(SFTConfig(**UNREAD), mesh=mesh, has_frozen=False, model_dtype="float32")
    assert {"mesh": "fsdp=1,tensor=4,sequence=2"} in found


def test_a_group_across_machines_is_charged_the_slower_network():
    program = PROGRAM.replace("{{0,1},{2,3}}", "{{0,1},{2,3},{6,8},{7,9},{4,5},{10,11}}")
    program = program.replace("{{0,2},{1,3}}", "{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11}}")
    traffic = count_cost(parse_module(program), {"fsdp": 12}).traffic
    h100 = parse_devices("12xH100")
    assert h100.network(traffic["all-reduce", ("fsdp",), 2].span) == h100.chip.outside
    assert h100.network(traffic["reduce-scatter", ("fsdp",), 2].span) == h100.chip.inside


def test_a_process_that_died_gives_way_to_another():
    with Workers() as workers:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"died: [\s\S]*KeyError"):
                workers.ask(1, {})  # no request: it falls over it, and so does the next
            assert workers._process is None
