"""Two slices that need not be there: what crosses the network between them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import dataclasses, json, math, re

import jax
from jax.experimental import topologies
from experiments.registry import find
from rlhf_jax.config import MeshConfig
from rlhf_jax.models import build_model
from rlhf_jax.plan.programs import trace_updates
from rlhf_jax.mesh import make_mesh

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
config = MeshConfig(data=2, fsdp=4, slices=2)
experiment = find("quickstart").experiment("cpu")
policy = dataclasses.replace(experiment.policy, layers=1, width=1024, mlp=4096, heads=16, kv_heads=16)
experiment = dataclasses.replace(experiment, policy=policy, mesh=config, reward=None, ppo=None)
mesh = make_mesh(config, devices)
text = trace_updates(experiment, mesh)["sft"].lower().compile().as_text()
sent = [line for line in text.splitlines() if re.search(r" send\\(", line)]
shapes = [re.search(r"= \\(\\w+\\[([\\d,]*)\\]", line)[1].split(",") for line in sent]
params = jax.eval_shape(build_model(policy).init, jax.random.key(0))
print(json.dumps({
    "slices": [sorted({device.slice_index for device in half.flatten()}) for half in mesh.devices],
    "gathers": sorted({group for line in text.splitlines() if " all-gather(" in line
                       for group in re.findall(r"replica_groups=(\\S+),", line)}),
    "across": all("xla_megascale_runtime" in line for line in sent),
    "sent": sum(math.prod(map(int, shape)) for shape in shapes),
    "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
}))
"""


def test_an_update_on_two_slices_gathers_inside_of_them_and_sends_pieces_of_gradients_across(with_compiler):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**with_compiler, "TPU_SKIP_MDS_QUERY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["slices"] == [[0], [1]]
    assert found["gathers"] == ["{{0,1,2,3}}"]  # each slice runs a program of its own, on its own four chips
    assert found["across"]
    # A quarter of the gradients, and little more: what is small is sent whole.
    assert found["params"] / 4 < found["sent"] < 0.26 * found["params"]
