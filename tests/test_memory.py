"""What of a machine's memory this process may use, and what of a device's is in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import memory
from rlhf_jax.memory import held_on, memory_of

DEVICE = jax.devices()[0]
JOB = "/slurm/uid_7/job_3/step_0"


def limits_of(monkeypatch, tmp_path, groups: str, files: dict[str, str]) -> int:
    """The bytes that programs may need where the process is in these control groups, with these files."""
    own = tmp_path / "own"
    own.write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "OWN_CGROUPS", own)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return memory_of(DEVICE)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"memory.max": "1000000\n"}),  # a container
        (f"0::{JOB}\n", {f"{JOB[1:]}/memory.max": "max\n", "slurm/uid_7/job_3/memory.max": "1000000\n"}),
        (f"0::{JOB}\n", {f"{JOB[1:]}/memory.max": "1000000\n", "slurm/memory.max": "3000000\n"}),
        (f"4:cpu,memory:{JOB}\n0::/\n", {f"memory{JOB}/memory.limit_in_bytes": "1000000\n"}),  # version 1
        ("9:memory:/of/the/host\n", {"memory/memory.limit_in_bytes": "1000000\n"}),  # in a container of it
    ],
)
def test_the_least_limit_of_the_groups_that_a_process_is_in_counts_as_its_memory(monkeypatch, tmp_path, groups, files):
    assert limits_of(monkeypatch, tmp_path, groups, files) == 800_000


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {"memory.max": "1000000\n"}),
        ("0::/mine\n", {"memory.max": "max\n", "other/memory.max": "1000000\n"}),
        ("3:cpu:/\n", {"cpu/memory.limit_in_bytes": "1000000\n", "memory/memory.limit_in_bytes": "1000000\n"}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}),  # none, in version 1
    ],
)
def test_where_no_group_has_a_limit_all_of_the_machine_counts(monkeypatch, tmp_path, groups, files):
    assert limits_of(monkeypatch, tmp_path, groups, files) > 2**28


def test_devices_of_a_cpu_have_each_a_part():
    assert memory_of(DEVICE, 4) == pytest.approx(memory_of(DEVICE) / 4, abs=1)


def test_arrays_in_use_count_once_and_as_long_as_they_are_there():
    # Bytes of the array, and of what earlier tests may still hold, or give back meanwhile.
    size, others = 40_000_000, 100_000
    before = held_on(DEVICE)
    array = jnp.ones(size // 4)
    same = jax.make_array_from_single_device_arrays(array.shape, array.sharding, [array])
    assert held_on(DEVICE) == pytest.approx(before + size, abs=others) and same.shape == (size // 4,)
    del array, same
    assert held_on(DEVICE) == pytest.approx(before, abs=others)
