"""The paper's configuration lowers on sixteen devices, from shapes alone."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from experiments.registry import find
from rlhf_jax.config import ONE_DEVICE, LoRA
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.plan.hlo import Program
from rlhf_jax.plan.planner import traced_programs
from rlhf_jax.plan.programs import lower_ppo

PROGRAM = """
import json, re
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 16)
from experiments.registry import find
from rlhf_jax.plan.programs import lower_updates
from rlhf_jax.mesh import make_mesh
experiment = find("instructgpt2022/ppo_ptx").experiment("tpu")
lowered = lower_updates(experiment, make_mesh(experiment.mesh))
texts = {stage: program.as_text() for stage, program in lowered.items()}
print(json.dumps({
    "stages": sorted(texts),
    "devices": {stage: "mhlo.num_partitions = 16" in text for stage, text in texts.items()},
    "sharded": {stage: text.count("sdy.sharding") + text.count("mhlo.sharding") for stage, text in texts.items()},
    # Not getrusage: what it says includes the process that this one was forked from.
    "mib": int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024,
}))
"""


def test_the_updates_of_the_paper_lower_on_sixteen_devices_without_memory_for_weights():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stages"] == ["ppo", "reward", "sft"]
    assert all(found["devices"].values())
    assert all(count > 10 for count in found["sharded"].values())
    # The 1.3B policy alone is 5 GiB in float32; a process without weights stays far below.
    assert found["mib"] < 3000


def deep(layers: int) -> dict[str, Any]:
    """The quickstart's traced programs, by name, of models with so many layers."""
    experiment = find("quickstart").experiment("cpu")
    policy = dataclasses.replace(experiment.policy, layers=layers)
    return traced_programs(dataclasses.replace(experiment, policy=policy), make_mesh(experiment.mesh))


def test_programs_are_as_long_for_24_layers_as_for_2():
    few, many = ({name: one.lower().as_text() for name, one in deep(layers).items()} for layers in (2, 24))
    assert set(few) == {"sft", "reward", "ppo", "ppo/responses", "ppo/reward", "ppo/scoring"}
    assert {name: text.count("\n") for name, text in many.items()} == {
        name: text.count("\n") for name, text in few.items()
    }


def test_what_the_compiler_makes_of_24_layers_is_as_long_as_of_2():
    few, many = (Program(deep(layers)["sft"].lower().compile().as_text()) for layers in (2, 24))
    # Which of a few copies and constants there are depends on sizes.
    assert many.instructions == pytest.approx(few.instructions, rel=0.02)


def parameter_bytes(lora: LoRA | None) -> int:
    """Bytes of parameters and optimiser state that PPO holds for policy, value model and reference."""
    experiment = dataclasses.replace(find("instructgpt2022/ppo_ptx").experiment("tpu"), lora=lora)
    program = lower_ppo(experiment, make_mesh(ONE_DEVICE))
    (live, frozen, *_), _ = program.args_info
    sizes = [leaf.shape and int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves((live, frozen))]
    # Without adapters the reference is a copy of the first policy; with them it is the policy's frozen part.
    policy = jax.eval_shape(build_model(experiment.policy).init, jax.random.key(0))
    reference = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(policy))
    return sum(size or 0 for size in sizes) + (reference if lora is None else 0)


def test_ppo_with_adapters_holds_less_than_sixty_percent_of_the_memory_of_all_parameters():
    full, adapters = parameter_bytes(None), parameter_bytes(LoRA(rank=16))
    share = adapters / full
    print(f"{full / 2**30:.1f} GiB, with adapters {adapters / 2**30:.1f} GiB: {share:.3f}")
    assert share < 0.4
