"""The TPU's compiler, which stands beside the environment, so that JAX looks for no TPU in other tests."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.prefix) / "tpu"


@pytest.fixture(scope="session")
def with_compiler() -> dict[str, str]:
    """The environment of processes that compile for TPUs."""
    if not (BESIDE / "libtpu").is_dir() and importlib.util.find_spec("libtpu") is None:
        pytest.skip(f"libtpu is neither installed nor in {BESIDE}; `make tpu-compiler` puts it there")
    path = os.pathsep.join([str(ROOT), str(BESIDE)])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
