"""Every recipe on every kind of mesh: the same run, and no more messages between devices than follow from the mesh."""

import functools
import re
from collections import Counter

import pytest

from jaxalign.training import TrainStep
from tests.recipes import matrix
from tests.recipes.toy import assert_same_run

MESHES = ["data=8", "fsdp=8", "data=2,tensor=4", "data=2,fsdp=2,tensor=2", "sequence=4"]
# The model's layers, forward: policy and reference of DPO; sequences and pretraining text of hindsight; policy and
# critic of a PPO step. Backward: the same without the reference.
FORWARD = {"sft": 1, "dpo": 2, "reward": 1, "hindsight": 2, "ppo": 2}
BACKWARD = {"sft": 1, "dpo": 1, "reward": 1, "hindsight": 2, "ppo": 2}
# Of a layer: query, key, value, output, gate, up, down.
MATRICES = 7
COLLECTIVE = re.compile(
    r"= (?P<shape>\S.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


@functools.cache
def run(recipe: str, mesh: str):
    """A run, and the program of its step as it was compiled."""
    programs: list[str] = []
    call = TrainStep.__call__

    def spy(self, state, frozen, batch):
        if not programs:
            programs.append(self.lower(state, frozen, batch).compile().as_text())
        return call(self, state, frozen, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", spy)
        return matrix.run(recipe, mesh), programs[0]


def collectives(program: str) -> list[tuple[str, str, str]]:
    """(kind, shapes, name of the operation) of every collective; one in a loop over layers stands for all of them."""
    found = []
    for line in program.splitlines():
        if match := COLLECTIVE.search(line):
            name = re.search(r'op_name="([^"]*)"', line)
            found.append((match["kind"], match["shape"], name[1] if name else ""))
    return found


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("recipe", list(matrix.RECIPES))
def test_a_recipe_does_not_depend_on_the_mesh(recipe, mesh):
    assert_same_run(run(recipe, mesh)[0], matrix.run(recipe))


@pytest.mark.parametrize("recipe", list(matrix.RECIPES))
def test_data_parallel_steps_add_gradients_once(recipe):
    """One sum a layer and pass backward, of all its parameters together; one of what is outside of the layers, with the
    losses; the counts, which they are divided by. Nothing is gathered."""
    found = collectives(run(recipe, "data=8")[1])
    assert {kind for kind, _, _ in found} == {"all-reduce"}
    layers = [shape for _, shape, _ in found if "f32[16,32]" in shape]
    assert len(layers) == BACKWARD[recipe]
    assert all(len(re.findall(r"f32\[", shape)) == MATRICES + 2 for shape in layers)  # and two norms
    assert sum("f32[304,16]" in shape for _, shape, _ in found) == 1
    # PPO adds up statistics of the whole rollout before it begins: scores, then what is relative to their means.
    assert len(found) - len(layers) == (8 if recipe == "ppo" else 2)


@pytest.mark.parametrize("recipe", list(matrix.RECIPES))
def test_sharded_parameters_are_gathered_once_a_pass(recipe):
    """Every matrix of a layer when it is used, forward and again backward; never an activation."""
    found = collectives(run(recipe, "fsdp=8")[1])
    gathered = Counter(re.sub(r"\{.*", "", shape) for kind, shape, _ in found if kind == "all-gather")
    passes = FORWARD[recipe] + BACKWARD[recipe]
    layer = {"f32[16,4,8]": 1, "f32[16,2,8]": 2, "f32[4,8,16]": 1, "f32[16,32]": 2, "f32[32,16]": 1}
    assert sum(layer.values()) == MATRICES
    assert {shape: gathered.pop(shape) for shape in layer} == {shape: passes * count for shape, count in layer.items()}
    # The embedding for tokens and logits, once a model at most; the score head.
    assert set(gathered) <= {"f32[304,16]", "f32[1,16]"}
    assert gathered["f32[304,16]"] <= FORWARD[recipe]
    assert gathered["f32[1,16]"] <= 1
    assert not {kind for kind, _, _ in found} & {"all-to-all", "collective-permute"}


@pytest.mark.parametrize("recipe", list(matrix.RECIPES))
def test_tensor_parallel_layers_add_activations_twice_forward(recipe):
    """Behind the attention's output and behind the MLP's; activations are [rows, tokens, width]."""
    found = collectives(run(recipe, "data=2,tensor=4")[1])
    forward = [
        shape
        for kind, shape, name in found
        if kind == "all-reduce" and "jvp()/while/body" in name and "transpose(" not in name
    ]
    assert len(forward) == 2 * FORWARD[recipe]
    assert all(re.fullmatch(r"f32\[\d+,\d+,16\]\{2,1,0\}", shape) for shape in forward)


@pytest.mark.parametrize("recipe", list(matrix.RECIPES))
def test_pieces_of_rows_send_keys_and_values_round_a_ring(recipe):
    """Keys and values together, forward and again backward, where their gradients go round and home besides; hidden
    states go round to be scored, their gradients back. Nobody gathers activations or weights."""
    found = collectives(run(recipe, "sequence=4")[1])
    moved = [name for kind, _, name in found if kind == "collective-permute"]
    in_layers = [name for name in moved if "Block/attention" in name]
    assert len(in_layers) == FORWARD[recipe] + 5 * BACKWARD[recipe]
    assert len(moved) - len(in_layers) == 3 * (FORWARD[recipe] + BACKWARD[recipe])
    assert not [shape for kind, shape, _ in found if kind == "all-gather" and re.search(r"f32\[\d+,\d+,\d+", shape)]
    assert "all-to-all" not in {kind for kind, _, _ in found}
