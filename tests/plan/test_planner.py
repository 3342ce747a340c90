"""Which meshes there are, what is tried where something does not fit, and how a search ranks."""

import dataclasses

import pytest

from experiments.registry import find
from rlhf_jax.config import MeshConfig
from rlhf_jax.plan import search as module
from rlhf_jax.plan.chips import parse_topology
from rlhf_jax.plan.planner import meshes, plan, remedies, told, with_microbatches, with_remat, work_of
from rlhf_jax.plan.roofline import Cost
from rlhf_jax.plan.search import remedy, search

TOPOLOGY = parse_topology("v5e:2x2")


@pytest.fixture(scope="module")
def quickstart():
    return find("quickstart").experiment("cpu")


def fake(seconds_of, fits_of=lambda experiment: True):
    """`plan`, but for the compiler: a program that takes so long."""

    def planned(experiment, topology, only=None, tell=None):
        size = 1 if fits_of(experiment) else 2**60
        seconds = seconds_of(experiment)
        flops = seconds * topology.chips * topology.chip.flops
        return (Cost("sft", topology, flops, flops, size, size, None, (), (), 0.0),)

    return planned


def test_meshes_have_all_chips_and_divide_rows_and_heads(quickstart):
    found = [experiment.mesh for experiment in meshes(quickstart, 8)]
    assert found[0] == MeshConfig(fsdp=8) and len(set(found)) == len(found)
    assert all(mesh.devices == 8 and mesh.tensor <= quickstart.policy.heads for mesh in found)
    assert MeshConfig(tensor=8) not in found, "four heads do not split over eight devices"


def test_meshes_keep_the_context_that_was_given_where_it_divides_the_chips(quickstart):
    given = dataclasses.replace(quickstart, mesh=MeshConfig(context=2))
    found = [experiment.mesh for experiment in meshes(given, 8)]
    assert found[0] == MeshConfig(fsdp=4, context=2) and all(mesh.devices == 8 for mesh in found)
    assert {mesh.context for mesh in found} == {2} and [mesh.mesh for mesh in meshes(given, 1)] == [MeshConfig()]
    assert told(found[0]) == "data=1 fsdp=4 tensor=1 context=2" and told(MeshConfig()) == "data=1 fsdp=1 tensor=1"


def test_the_smallest_change_is_tried_first(quickstart):
    words = [said for said, _ in remedies(quickstart, 4)]
    assert words[0] == "policy.remat=layers"
    assert words[-1].endswith("x the microbatches")
    assert [experiment.policy.remat for _, experiment in remedies(quickstart, 4)] == ["layers"] * len(words)
    more = with_microbatches(quickstart, 2)
    assert more.sft.optim.microbatches == 2 * quickstart.sft.optim.microbatches
    with pytest.raises(ValueError, match="microbatches"):
        with_microbatches(quickstart, 3)


def test_a_search_begins_with_what_was_given_and_ranks_by_time_what_fits(quickstart, monkeypatch):
    given = dataclasses.replace(quickstart, mesh=MeshConfig(fsdp=4))
    monkeypatch.setattr(
        module, "plan", fake(lambda e: {1: 3.0, 2: 1.0}.get(e.mesh.tensor, 2.0), lambda e: e.mesh.data == 1)
    )
    found = search(given, TOPOLOGY, only="sft", most=5)
    assert len(found.tried) == 5 and found.best.mesh == MeshConfig(fsdp=2, tensor=2)
    assert "as given" in found.table() and found.table().rstrip().endswith("| does not fit |")
    assert "| data=1 fsdp=2 tensor=2 | 1.00 s |" in found.table()
    monkeypatch.setattr(module, "plan", fake(lambda e: 1.0 / e.mesh.tensor, lambda e: False))
    assert search(given, TOPOLOGY, only="sft", most=5).best == given, "where nothing fits, nothing is better"


def test_a_remedy_is_the_first_change_with_which_all_fits(quickstart, monkeypatch):
    monkeypatch.setattr(module, "plan", fake(lambda e: 1.0, lambda e: e.policy.remat == "layers"))
    assert remedy(quickstart, TOPOLOGY, ["sft"]) == "it fits with policy.remat=layers"
    monkeypatch.setattr(module, "plan", fake(lambda e: 1.0, lambda e: e.sft.optim.microbatches >= 4))
    assert remedy(quickstart, TOPOLOGY, ["sft"]).endswith("4 x the microbatches")
    monkeypatch.setattr(module, "plan", fake(lambda e: 1.0, lambda e: False))
    assert "take a larger slice" in remedy(quickstart, TOPOLOGY, ["sft"])


def test_operations_are_those_of_the_matrices_by_hand(quickstart):
    c, rows, length = quickstart.policy, quickstart.sft.optim.rows, quickstart.sft.pack_length or quickstart.text.length
    tokens = rows * length
    matrices = c.layers * c.width * (4 * c.width + 3 * c.mlp)
    attention = 2 * c.layers * length * c.width  # scores, and what they weigh
    forward = 2 * tokens * (matrices + attention + c.vocab * c.width)
    flops, model_flops = work_of(quickstart, ["sft"])["sft"]
    again = 2 * tokens * c.vocab * c.width  # the output layer keeps no logits
    assert (flops, model_flops) == (3 * forward + again, 3 * forward)
    layers = c.layers * (2 * tokens * c.width * (4 * c.width + 3 * c.mlp) + 4 * tokens * length * c.width)
    again_flops, again_model_flops = work_of(with_remat(quickstart, "layers"), ["sft"])["sft"]
    assert again_model_flops == model_flops
    assert flops < again_flops <= 3 * forward + again + layers


def test_a_mesh_of_other_chips_is_refused(quickstart):
    with pytest.raises(ValueError, match="data=1 fsdp=1 tensor=1 has 1 devices, and v5e:2x2 has 4"):
        plan(quickstart, TOPOLOGY)


def test_attention_of_long_texts_is_counted_whole(quickstart):
    """What grows with the square of the length is attention, of all pairs of tokens, forward and twice that backward."""

    def work(length):
        text = dataclasses.replace(quickstart.text, length=length)
        policy = dataclasses.replace(quickstart.policy, max_length=length)
        sft = dataclasses.replace(quickstart.sft, pack_length=None)
        changed = dataclasses.replace(quickstart, text=text, policy=policy, sft=sft)
        return work_of(changed, ["sft"])["sft"][1], policy

    (short, policy), (long, _) = work(256), work(512)
    rows = quickstart.sft.optim.rows
    squares = 3 * 4 * policy.layers * policy.heads * policy.head_size * rows
    assert long - 2 * short == pytest.approx(squares * (512**2 - 2 * 256**2), rel=1e-6)


def test_responses_in_slots_are_as_much_work_as_all_at_once():
    dapo = find("smoke/dapo").experiment("cpu")
    assert dapo.ppo is not None and dapo.ppo.slots == dapo.ppo.prompts * dapo.ppo.samples // 2
    at_once = dataclasses.replace(dapo, ppo=dataclasses.replace(dapo.ppo, slots=None))
    slots, whole = (work_of(experiment, ["ppo/responses"])["ppo/responses"][0] for experiment in (dapo, at_once))
    assert 0.9 * whole < slots <= whole  # the first token of the second half is drawn in the loop
