"""What the project needs to run. Tool settings live in pyproject.toml, tested versions in constraints.txt."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """`__version__` of the package, read without importing it."""
    for node in ast.parse((ROOT / "rlhf_jax" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise ValueError("rlhf_jax/__init__.py: no __version__ = '...' line")


# Lower bounds are the oldest versions the tests have run with. An upper bound names a break that is known to come.
REQUIRED = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",  # its v1 interface moves to the top level after 0.12
    "tensorflow-datasets>=4.9.10",
    "sentencepiece>=0.2.3",
    "transformers>=5.23",
    "grain>=0.2.18",
    "tensorboardX>=2.6.5",
    "numpy>=2.4.6",
    "scipy>=1.17",
    "rich>=15",
    "matplotlib>=3.11.2",
    "jaxtyping>=0.3.11",
]

DATA = [
    "datasets>=5.2",
    "datasketch>=2",
    "ftfy>=6.3.1",
    "openpyxl>=3.1.5",
    "phonenumbers>=9.0.43",
    "py3langid>=0.4",
    "rouge-score>=0.1.2",
]

EXTRAS = {
    "data": DATA,  # spreadsheets and the hub, cleaning, personal data, generation; reading files and training need none of it
    "beam": [
        *DATA,
        "apache-beam>=2.77,<3",
    ],  # preparing on a cluster; wants an environment of its own, with constraints-beam.txt
    "judge": ["openai>=3.54"],  # a language model behind an address
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "slurm": ["submitit>=1.5.4"],  # jobs from Python; the script slurm.sh needs nothing
    "test": [
        *DATA,
        "openai>=3.54",
        "submitit>=1.5.4",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "beartype>=0.23.1",
        "nbclient>=0.11",
        "jupytext>=1.19.6",
        "torch==2.13.0",  # reference logits only; exactly one version, as another may round otherwise
        "ipykernel>=7.4",
        "ruff>=0.17.6",
        "pyright[nodejs]>=1.1.414",  # [nodejs]: node comes from the package index, not from a download at first use
        "pre-commit>=4.7",
    ],
}

setup(
    name="rlhf_jax",
    version=version(),
    description="Instruction tuning and RLHF in JAX: small, typed, and checked against exact answers.",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*", "experiments", "experiments.*"]),
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
