"""`python -m rlhf_jax.plan`, with the TPU's own compiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhf_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_the_quickstart_fits_on_four_chips_and_everything_about_it_is_told(with_compiler, tmp_path):
    done = run(with_compiler, "quickstart", "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / "plan.json").read_text())
    programs = {each["program"]: each for each in told["programs"]}
    assert set(programs) == {"sft", "reward", "ppo", "ppo/responses", "ppo/reward", "ppo/scoring"} and told["fits"]
    assert all(f"| {name} |" in done.stdout for name in programs)
    assert "fits: the largest needs" in done.stdout
    # Nothing of what libtpu says when there is no TPU.
    assert all(line.split()[1] == "for" for line in done.stderr.splitlines()), done.stderr
    # FSDP: weights are gathered, and gradients of the embedding summed once, not at every chunk of the output layer.
    sft = programs["sft"]
    assert sft["collectives"]["all-gather"]["count"] > 0
    assert sft["flops"] > sft["model_flops"], "the output layer is done again in the backward pass"


def test_a_billion_parameters_with_their_moments_need_more_than_one_small_chip(with_compiler):
    done = run(with_compiler, "instructgpt2022/ppo_ptx", "--topology", "v5e:1x1", "--only", "sft")
    assert done.returncode == 1, done.stderr[-2000:]
    assert "does not fit: sft needs " in done.stdout and " of 16.00 GiB a chip" in done.stdout
    assert "take a larger slice" in done.stdout


def test_the_kernel_of_tpus_is_what_the_compiler_finds_and_a_search_ranks_meshes(with_compiler, tmp_path):
    small = ("policy.layers=2", "policy.width=256", "policy.mlp=512", "policy.heads=2", "policy.kv_heads=2")
    where = ("instructgpt2022/ppo_ptx", "--topology", "v5e:2x2", "--only", "sft", "--search", "--most", "2")
    assignments = [part for one in small for part in ("--set", one)]
    done = run(with_compiler, *where, *assignments, "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    (sft,) = json.loads((tmp_path / "plan.json").read_text())["programs"]
    assert any("splash" in kernel for kernel in sft["kernels"]), sft["kernels"]
    assert sft["flops"] > sft["model_flops"], "layers are made again in the backward pass"
    ranked = [line for line in done.stdout.splitlines() if line.startswith("| data=")]
    assert len(ranked) == 2 and all("fits" in line for line in ranked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quickstart", "--topology", "v5x:2x2"), "no chip 'v5x'"),
        (("quickstart", "--topology", "v5e:2x2", "--mesh", "fsdp=3"), "does not split over mesh data x fsdp = 3"),
        (("quickstart", "--topology", "v5e:2x2", "--mesh", "fsdp=2"), "has 2 devices, and v5e:2x2 has 4"),
        (("quickstart", "--topology", "v5e:2x2", "--mesh", "context=2"), "context=2 has 2 devices, and v5e:2x2 has 4"),
        (
            ("quickstart", "--topology", "v5e:2x2", "--mesh", "rows=4"),
            "--mesh rows=4: expected sizes of data, fsdp, tensor, context",
        ),
        (("quickstart", "--topology", "v5e:2x2", "--only", "dpo"), "no program 'dpo'; quickstart has sft, reward, ppo"),
        (("quickstart", "--topology", "v5e:2x2", "--search", "--most", "0"), "--most 0: at least 1"),
        (("quickstrt", "--topology", "v5e:2x2"), "quickstart"),
        (("exact/on_policy", "--topology", "v5e:2x2"), "exact/on_policy is a study"),
        (("quickstart",), "quickstart is laid out for no slice at scale cpu; say which with --topology"),
        (("instructgpt2022/ppo_ptx", "--scale", "cpu"), "ppo_ptx is laid out for no slice at scale cpu"),
        # Without --topology it is the experiment's own, so that a mesh of another number of devices is refused.
        (("instructgpt2022/ppo_ptx", "--mesh", "fsdp=2"), "has 2 devices, and v5p:2x2x4 has 16"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(with_compiler, arguments, said):
    done = run(with_compiler, *arguments)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_of_gpus_it_gives_the_arithmetic(with_compiler):
    done = run(with_compiler, "quickstart", "--topology", "h200:8", "--only", "sft")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "There is a compiler without the chip for TPUs alone" in done.stdout and "| sft |" in done.stdout
