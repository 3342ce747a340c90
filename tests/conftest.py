"""What every test runs under: eight CPU devices, no network, no silent rank promotion, unchecked records."""

from __future__ import annotations

import ast
import functools
import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RLHF_JAX_PROGRESS"] = "quiet"
# Compilation is most of what tests take, and takes a quarter where code for CPUs is left as it comes. What the compiler makes of
# programs before that, it makes as ever. XLA_FLAGS= has all of it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import flax.struct
import jax
import pytest
from beartype import BeartypeConf, FrozenDict
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).resolve().parents[1] / "rlhf_jax"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_jax" / "xla"

# As `mesh.split_cpu` does for eight devices.
os.environ.setdefault("NPROC", "64")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Workers, and the next run, take compiled programs from here, the many small ones above all: reading one is six times
# faster than compiling it.
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _unchecked(dataclass: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(dataclass)
    def decorate(*args: Any, **kwargs: Any) -> Any:
        record = dataclass(*args, **kwargs)
        if isinstance(record, type):  # called without a class, it makes a decorator that comes back here
            record.__no_type_check__ = True  # pyright: ignore[reportAttributeAccessIssue]
        return record

    return decorate


# JAX rebuilds records with leaves of any kind (shapes, shardings, None), so their constructors take what they get;
# functions that receive records are checked as ever.
flax.struct.dataclass = _unchecked(flax.struct.dataclass)


def _checked_by_jaxtyping() -> list[str]:
    """The modules that tell shapes, and those that beartype by itself does not leave alone: with records and layers, which JAX rebuilds, or
    types that are not imported; and with functions made in functions, each of which it keeps for ever, and whatever they hold."""
    marks = re.compile("jaxtyping|flax|@pytree|NamedTuple|TYPE_CHECKING")
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    found = [path for path, text in texts.items() if marks.search(text) or _has_nested_functions(ast.parse(text))]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in found]


def _has_nested_functions(module: ast.Module) -> bool:
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    return any(isinstance(inner, ast.FunctionDef) and inner is not one for one in functions for inner in ast.walk(one))


@runtime_checkable
class _OfLanes(Protocol):
    """A number of lanes, which stands where a float is annotated (rlhf_jax/lanes/numbers.py)."""

    def agreed(self, of: Callable[[float], Any]) -> Any: ...


# The checker sees every call into the package, and takes an int for a float as Python does. Shapes and dtypes cost tens of
# microseconds a call: where none are told, there is beartype alone.
FLOATS = FrozenDict({float: float | int | _OfLanes})
beartype_package("rlhf_jax", conf=BeartypeConf(hint_overrides=FLOATS, claw_is_pep526=False))
install_import_hook(_checked_by_jaxtyping(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs() -> Iterator[None]:
    """Programs are let go of before there are too many: each takes about ten memory mappings, and Linux ends a process that wants more than
    65,530. What is used again comes from the cache on disk."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_text().splitlines()) > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Mixed dtypes raise instead of being promoted. Not global, because optax mixes them itself."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of data sets: $RLHF_JAX_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("RLHF_JAX_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no data sets at {root}; say where they are with RLHF_JAX_DATA")
    return root
