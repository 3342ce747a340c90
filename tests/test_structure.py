"""The rules about the code itself: layers, lengths, and imports that do nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError
from mutations import mutated, mutations

from rlhf_jax.checks import require
from rlhf_jax.config import Optim
from rlhf_jax.masking import masked_mean

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rlhf_jax", "experiments", "benchmarks", "notebooks", "tests", "docs")
MAX_LINES = 400

# From the bottom up. A module imports from its own layer and from those above it in this list, i.e. down the picture.
LAYERS = (
    {"rlhf_jax"},
    {"types", "checks", "files", "frozen", "config", "overrides", "endpoint", "processes"},
    {"masking", "memory", "mesh", "sharding", "compiled", "lanes", "data", "worlds"},
    {"models"},
    {"losses"},
    {"train", "rollout", "eval", "feedback"},
    {"checkpoint", "report"},
    {"loops"},
    {"doctor", "plan"},
    {"experiments"},
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}
# These take seconds to import, or start threads; only the function that needs one imports it.
HEAVY = (
    *("matplotlib", "transformers", "grain", "tensorboardX", "torch", "tensorflow"),
    *("pandas", "pyarrow", "datasets", "openpyxl", "phonenumbers", "datasketch", "ftfy", "py3langid"),
)

IMPORT_EVERYTHING = """
import contextlib, importlib, json, pkgutil, socket, sys

opened = []
connect = socket.socket.connect
socket.socket.connect = lambda self, address: opened.append(str(address)) or connect(self, address)

import rlhf_jax
found = {}
names = [module.name for module in pkgutil.walk_packages(rlhf_jax.__path__, "rlhf_jax.")]
for name in names:
    if name.endswith("__main__"):
        continue
    with contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(name)
    from jax._src import xla_bridge
    for what in [*opened, *xla_bridge._backends, *(heavy for heavy in HEAVY if heavy in sys.modules)]:
        found.setdefault(what, name)
print(json.dumps({"modules": len(names), "found": found}))
"""


def test_every_call_into_the_package_is_checked():
    with pytest.raises(BeartypeCallHintParamViolation, match="message=3"):
        require(True, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BeartypeCallHintParamViolation, match="lr="):
        jax.jit(lambda lr: Optim(lr=lr, rows=4, steps=4).rows)(0.1)
    with pytest.raises(TypeCheckError, match="mask"):
        masked_mean(jnp.zeros((2, 3)), jnp.zeros((3, 2), bool))


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def package_files() -> list[Path]:
    return python_files("rlhf_jax", "experiments")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The name in LAYERS that a module of ours belongs to."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "rlhf_jax" and rest else first


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of our own code in a file, those inside functions too."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from rlhf_jax import masking` names a module, `from rlhf_jax.masking import whiten` does not.
            names = [f"{module}.{alias.name}" if module == "rlhf_jax" else module for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("rlhf_jax", "experiments"))


@pytest.mark.parametrize("path", package_files(), ids=module_of)
def test_every_module_has_a_layer(path):
    assert layer_of(module_of(path)) in LAYER, f"say in LAYERS, and in the design, where {module_of(path)} belongs"


@pytest.mark.parametrize("path", package_files(), ids=module_of)
def test_imports_point_down_the_layers(path):
    height = LAYER[layer_of(module_of(path))]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for line, name in imports(path)
        if name != "rlhf_jax.__version__" and LAYER.get(layer_of(name), len(LAYERS)) > height
    ]
    assert not wrong, "imports that point up:\n" + "\n".join(wrong)


def test_an_import_that_points_up_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "rlhf_jax" / "losses" / "ppo.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from ..loops import rlhf\nfrom rlhf_jax import report, masking\ndef f():\n    import rlhf_jax.train\n"
    )
    assert sorted(imports(path)) == [
        (1, "rlhf_jax.loops"),
        (2, "rlhf_jax.masking"),
        (2, "rlhf_jax.report"),
        (4, "rlhf_jax.train"),
    ]
    with pytest.raises(AssertionError, match=r"ppo\.py:4: rlhf_jax\.train"):
        test_imports_point_down_the_layers(path)


def test_no_file_is_longer_than_a_reader_can_hold():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*FOLDERS)}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]
    assert not long, f"over {MAX_LINES} lines; find the part that has its own name:\n" + "\n".join(long)


def test_every_mutation_still_fits_the_code_and_its_tests():
    seen = set()
    for mutation in mutations():
        text = mutated((ROOT / mutation.path).read_text(encoding="utf-8"), mutation)
        ast.parse(text)
        assert all((ROOT / test).is_file() for test in mutation.tests), mutation
        assert (mutation.path, text) not in seen, f"twice: {mutation}"
        seen.add((mutation.path, text))
    assert len(seen) >= 25


def test_importing_opens_no_socket_starts_no_device_and_loads_nothing_heavy():
    script = f"HEAVY = {HEAVY!r}\n{IMPORT_EVERYTHING}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["modules"] > 10
    assert not result["found"], f"what happened, and the first module after whose import it had: {result['found']}"


def test_importing_the_package_alone_takes_no_time():
    script = "import time; start = time.perf_counter(); import rlhf_jax; print(time.perf_counter() - start)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert float(done.stdout) < 3.0


def test_the_type_checker_watches_every_call_into_the_package():
    from rlhf_jax.masking import masked_mean

    with pytest.raises(TypeError, match="masked_mean"):
        masked_mean(jnp.ones((2, 3)), jnp.ones((2, 2), bool))


def test_records_take_leaves_of_any_kind_because_transformations_rebuild_them():
    from rlhf_jax.types import Aux

    aux = Aux(weight=jnp.ones(()), metrics={})
    assert jax.tree.map(lambda leaf: leaf.shape, aux).weight == ()
    assert jax.tree.map(lambda leaf: None, aux).weight is None
