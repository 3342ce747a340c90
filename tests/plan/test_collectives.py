"""What devices exchange in an update, counted in the compiled program: a regression in the layout shows here first.

Of a layer: weights gathered once in each pass (FSDP), two sums in each pass (tensor parallelism), keys and values gathered once and their
gradients summed once (context); nothing that grows with the vocabulary but the gradient of the table and its weights, once.
"""

import dataclasses
import re
from collections import Counter

import pytest

from experiments.registry import find
from rlhf_jax.config import Experiment, MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.plan.hlo import Collective, Program
from rlhf_jax.plan.programs import trace_ppo, trace_rollout, trace_updates

MESHES = {"fsdp": MeshConfig(fsdp=8), "tensor": MeshConfig(tensor=4), "both": MeshConfig(fsdp=4, tensor=2)}
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def quickstart() -> Experiment:
    """Three layers of seven matrices; the output layer in several chunks of columns."""
    experiment = find("quickstart").experiment("cpu")
    policy = dataclasses.replace(experiment.policy, logit_chunk=12)  # so that chunks are not as many as layers
    return dataclasses.replace(experiment, policy=policy)


def collectives(program) -> list[Collective]:
    text = program.lower().compile().as_text()
    assert text is not None
    return list(Program(text).collectives)


def of_layers(found: list[Collective], layers: int) -> Counter[tuple[str, int]]:
    """(kind, devices) of what is exchanged in the loop over layers."""
    return Counter((each.kind, each.group) for each in found if each.times == layers)


@pytest.mark.parametrize("name", MESHES)
def test_an_sft_update_exchanges_what_its_layout_needs_and_no_more(quickstart, name):
    mesh = MESHES[name]
    experiment = dataclasses.replace(quickstart, mesh=mesh, reward=None, ppo=None)
    found = collectives(trace_updates(experiment, make_mesh(mesh))["sft"])
    expected: Counter[tuple[str, int]] = Counter()
    if mesh.fsdp > 1:
        expected["all-gather", mesh.fsdp] += 2 * len(MATRICES)  # forward and backward
        expected["all-reduce", mesh.fsdp] += 1  # all gradients of a layer together
    if mesh.tensor > 1:
        expected["all-reduce", mesh.tensor] += 4  # behind attention and behind the feed-forward, in both directions
    assert of_layers(found, experiment.policy.layers) == expected
    _outside_of_layers(found, experiment)


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=4), MeshConfig(data=4, fsdp=2)], ids=str)
def test_copies_of_the_parameters_exchange_gradients_and_no_tokens(quickstart, mesh):
    experiment = dataclasses.replace(quickstart, mesh=mesh, reward=None, ppo=None)
    text = trace_updates(experiment, make_mesh(mesh))["sft"].lower().compile().as_text()
    gathered = [shape.split(",") for shape in re.findall(r"= f32\[([\d,]*)\]\S* all-gather", text or "")]
    assert gathered
    rows = [str(experiment.sft.optim.rows), str(experiment.sft.pack_length)]
    assert not [shape for shape in gathered if shape[:2] == rows]


@pytest.mark.parametrize("remat", ["none", "products", "layers"])
def test_an_update_holds_no_weights_in_one_piece_but_those_of_the_layer_it_is_at(quickstart, remat):
    # So few tokens that weights are nearly all that there is.
    policy = dataclasses.replace(quickstart.policy, layers=12, width=256, mlp=1024, remat=remat)
    text = dataclasses.replace(quickstart.text, length=8, prompt_length=4)
    sft = dataclasses.replace(quickstart.sft, optim=dataclasses.replace(quickstart.sft.optim, rows=8), pack_length=None)
    smaller = dataclasses.replace(
        quickstart, policy=policy, text=text, sft=sft, reward=None, ppo=None, mesh=MESHES["fsdp"]
    )
    compiled = trace_updates(smaller, make_mesh(smaller.mesh))["sft"].lower().compile()
    found = list(Program(compiled.as_text()).collectives)
    assert of_layers(found, policy.layers)["all-gather", 8] == 2 * len(MATRICES)
    layer = 4 * policy.width * (4 * policy.width + 3 * policy.mlp)
    of_update = compiled.memory_analysis().temp_size_in_bytes
    assert of_update < policy.layers * layer / 2, of_update / layer


CONTEXTS = {
    "context": MeshConfig(context=4),
    "with fsdp": MeshConfig(fsdp=4, context=2),
    "with tensor": MeshConfig(tensor=4, context=2),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_texts_in_pieces_exchange_keys_and_values_of_a_layer_once_and_else_what_they_do_whole(quickstart, name):
    mesh = CONTEXTS[name]
    experiment = dataclasses.replace(quickstart, mesh=mesh, reward=None, ppo=None)
    found = collectives(trace_updates(experiment, make_mesh(mesh))["sft"])
    policy, shared = experiment.policy, mesh.fsdp * mesh.context
    layers = [each for each in found if each.times == policy.layers and "shard_map" not in each.where]
    tokens = experiment.sft.optim.rows // mesh.row_shards * experiment.sft.pack_length
    keys = tokens * policy.width * 4 // mesh.tensor
    gathered = Counter(each.group for each in layers if each.kind == "all-gather")
    of_keys = [each.bytes for each in layers if each.kind == "all-gather" and "attention/transpose" in each.where]
    assert of_keys == [keys, keys], "keys, and values, once: the backward pass has them still"
    assert gathered == Counter({mesh.context: 2}) + Counter({shared: 2 * len(MATRICES)})
    sums = [each for each in layers if each.kind == "all-reduce"]
    back = [each.bytes for each in sums if each.group == mesh.context and "bgqs,bgsk->bgqk" in each.where]
    assert back == [2 * keys], "the gradients of both, together"
    if mesh.tensor > 1:
        assert sum(each.group == mesh.tensor for each in sums) == 4
    assert {each.kind for each in layers} <= {"all-gather", "all-reduce"}
    # No text is ever whole: not its embeddings, not what the output layer reads.
    states = tokens // mesh.context * policy.width * 4
    moved = [each for each in found if each.times == 1 and ("/tokens/" in each.where or "pad" in each.where)]
    assert moved and all(each.bytes <= states for each in moved), [
        (each.kind, each.bytes, each.where) for each in moved
    ]


@pytest.mark.parametrize("name", MESHES)
def test_a_ppo_update_exchanges_as_much_for_each_model_and_minibatch_as_an_sft_update(quickstart, name):
    mesh = MESHES[name]
    experiment = dataclasses.replace(quickstart, mesh=mesh)
    found = collectives(trace_ppo(experiment, make_mesh(mesh)))
    ppo = experiment.ppo
    assert ppo is not None and ppo.value_optim is not None
    layers = of_layers(found, ppo.epochs * ppo.minibatches * experiment.policy.layers)
    models = 2  # the value model has as many layers
    assert layers["all-gather", mesh.fsdp] == (models * 2 * len(MATRICES) if mesh.fsdp > 1 else 0)
    assert layers["all-reduce", mesh.tensor] == (models * 4 if mesh.tensor > 1 else 0)


@pytest.mark.parametrize("gather_once", [False, True])
def test_sampling_gathers_every_weight_for_every_token_or_once_before(quickstart, gather_once):
    policy = dataclasses.replace(quickstart.policy, gather_once=gather_once, dtype="bfloat16")
    experiment = dataclasses.replace(quickstart, policy=policy, mesh=MESHES["fsdp"])
    assert experiment.ppo is not None
    program = Program(
        trace_rollout(experiment, make_mesh(experiment.mesh))["ppo/responses"].lower().compile().as_text()
    )
    kernels = 2 * policy.layers * policy.width * (4 * policy.width + 3 * policy.mlp)
    by_times = Counter[int]()
    for each in program.collectives:
        if each.kind == "all-gather":
            by_times[each.times] += each.bytes
    turns = [times for times in by_times if times >= experiment.ppo.new_tokens - 1]
    if gather_once:
        assert not turns and by_times[1] >= kernels, by_times
    else:
        assert sum(times * by_times[times] for times in turns) >= (experiment.ppo.new_tokens - 1) * kernels, by_times


def _outside_of_layers(found: list[Collective], experiment: Experiment) -> None:
    """The chunks of the output layer gather no weights and no logits, and sum no gradient of the table."""
    policy = experiment.policy
    table = policy.vocab * policy.width * 4
    assert experiment.sft is not None
    states = experiment.sft.optim.rows // experiment.mesh.fsdp * policy.logit_chunk * policy.width * 4
    chunked = [each for each in found if each.times not in (1, policy.layers)]
    assert all(each.bytes <= states for each in chunked), [
        (each.kind, each.times, each.bytes, each.where) for each in chunked
    ]
    whole = [each for each in found if each.times == 1 and each.bytes >= table / experiment.mesh.tensor]
    assert len(whole) <= 3, [(each.kind, each.bytes, each.where) for each in whole]
