"""Devices and the mesh of them: which stand beside which, and a CPU that stands for several.

`jax.sharding.AxisType.Auto` on purpose: under Explicit, ordinary research expressions (`x[perm]`, `top_k`) raise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from rlhf_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of axes data, fsdp, tensor, context over the first `config.devices` devices.

    Raises: ValueError where there are fewer devices than the mesh needs, or TPUs of more slices than it says.
    """
    order = device_order(config, jax.devices() if devices is None else list(devices))
    return Mesh(order, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_order(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """[data, fsdp, tensor, context], the first `config.devices` devices: neighbours along an axis are neighbours in a torus of TPUs,
    and nothing but data crosses slices.

    Other devices, and a part of a torus, stand as they come, host by host.
    """
    shape = (config.data, config.fsdp, config.tensor, config.context)
    sizes = ", ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if config.devices > len(devices):
        raise ValueError(f"mesh {sizes} needs {config.devices} devices; there are {len(devices)}")
    used = list(devices[: config.devices])
    if used[0].platform != "tpu":
        return np.asarray(used).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in used})
    if slices not in (1, config.slices):
        raise ValueError(f"mesh {sizes}, slices={config.slices}: these devices are of {slices} slices; set mesh.slices")
    if len(used) < len(devices):
        return np.asarray(used).reshape(shape)
    how: Any = {"allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, used, **how)
    inside, across = (config.data // slices, *shape[1:]), (slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(inside, across, used, **how)


def split_cpu(devices: int) -> None:
    """Lets a CPU stand for so many devices, unless XLA_FLAGS says how many, or they have been started already.

    Collectives block threads (see `compiler_options`), of which XLA has one a device; where devices are more than cores it gets several.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if devices > (os.cpu_count() or 1):
        os.environ.setdefault("NPROC", str(8 * devices))  # the only way to say it, read when devices start
    settings: Any = jax.config
    with contextlib.suppress(RuntimeError):
        settings.update("jax_num_cpu_devices", devices)


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """What XLA is told for this mesh: on CPUs that stand for several devices, not to run independent collectives side by side.

    A collective blocks its thread until all devices have come to it, and there are as many threads as devices: devices that came to
    different ones first would wait for each other until XLA ends the process.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return None
