"""Where a run's weights and tokenizer come from: a checkpoint below the data root, a folder anywhere, or the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.compiled import compile_function
from rlhf_jax.config import Experiment, LoRA, ModelConfig
from rlhf_jax.data.tokens.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    find_tokenizer,
    load_tokenizer,
)
from rlhf_jax.frozen import Frozen
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.family import Family
from rlhf_jax.models.convert.llama2c import load_llama2c
from rlhf_jax.models.convert.load import check_folder, find_folder, load_pretrained, read_config
from rlhf_jax.models.convert.peft import CONFIG as ADAPTERS
from rlhf_jax.models.convert.peft import load_adapters, read_adapter_config
from rlhf_jax.models.convert.save import FREE, shape_difference
from rlhf_jax.models.lora import BASE, LORA, merged, targets_of
from rlhf_jax.models.params import without_scores
from rlhf_jax.sharding import place
from rlhf_jax.types import Params

HUB = "hf:"
BESIDE = "checkpoint"
"""The name of the tokenizer that lies beside the checkpoint."""

Root = Callable[[], Path]


def locate(name: str, root: Root) -> Path:
    """The file or folder of a checkpoint or tokenizer: `hf:ORG/NAME`, a path from here, or a path below the data root.

    Raises: FileNotFoundError where it is not.
    """
    if name.startswith(HUB):
        return find_folder(name)
    path = Path(name)
    if not path.exists() and not path.is_absolute():
        path = root() / name
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; the experiment needs it")
    return path


def read_shape(path: Path) -> tuple[ModelConfig, Family | None]:
    """(shape, family) of a checkpoint; a llama2.c file has no family."""
    if path.is_dir():
        family, config, _ = read_config(base_of(path)[0])
        if not config.lm_head and config.head != "none":
            raise ValueError(
                f"checkpoint {path} is a model with head {config.head!r}; a run starts from one with an output layer, head 'lm', or from "
                "an encoder alone"
            )
        return config, family
    return load_llama2c(path)[0], None


def base_of(folder: Path) -> tuple[Path, LoRA | None]:
    """(the folder of a checkpoint, the adapters' config where it is a folder of adapters)."""
    if not (folder / ADAPTERS).is_file():
        return folder, None
    lora, base = read_adapter_config(folder)
    return find_folder(base), lora


def read_policy(path: Path, asked: ModelConfig, mesh: Mesh) -> Params:
    """The parameters of a checkpoint on the mesh. Raises: what `check_shape` and `load_pretrained` raise."""
    family = check_shape(path, asked)
    if family is not None:
        base, lora = base_of(path)
        params = without_scores(load_pretrained(base, mesh).params)
        if lora is None:
            return params
        adapters = place({LORA: load_adapters(path, lora, asked, family)}, mesh)
        return compile_function(partial(merged, config=lora), mesh)({**adapters, BASE: Frozen(params)})
    return place(jax.tree.map(jnp.asarray, load_llama2c(path)[1]), mesh)


def check_pretrained(experiment: Experiment, root: Root) -> None:
    """What can be known of checkpoint, tokenizer and adapters before anything is trained or written.

    Raises: FileNotFoundError or ValueError for what is not there, damaged, of another shape, or does not fit together.
    """
    if experiment.checkpoint is not None:
        path = locate(experiment.checkpoint, root)
        check_shape(path, experiment.policy)
        if path.is_dir():
            check_folder(base_of(path)[0])
    if not experiment.text.tokenizer.startswith("train:"):
        check_vocabulary(experiment, read_tokenizer(experiment, root))
    if experiment.lora is not None:
        shapes = [experiment.policy]
        if experiment.reward is not None and experiment.reward.init == "policy":
            shapes.append(experiment.reward_shape)
        for shape in shapes:
            targets_of(jax.eval_shape(build_model(shape).init, jax.random.key(0)), experiment.lora)


def check_shape(path: Path, asked: ModelConfig) -> Family | None:
    """The family of a checkpoint. Raises: ValueError naming the fields in which its shape is not the one asked for."""
    shape, family = read_shape(path)
    wrong = shape_difference(asked, shape)
    if wrong:
        fields = (f"{name} is {there!r} there, policy.{name} is {here!r}" for name, (here, there) in wrong.items())
        raise ValueError(f"checkpoint {path} is of another shape than policy: {', '.join(fields)}")
    return family


def check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises: ValueError where the policy has no room for the tokenizer's pieces."""
    if tokenizer.vocab_size > experiment.policy.vocab:
        raise ValueError(
            f"text.tokenizer {experiment.text.tokenizer!r} has {tokenizer.vocab_size} pieces, policy.vocab is "
            f"{experiment.policy.vocab}; it must be at least as large"
        )


def with_checkpoint(experiment: Experiment, root: Root, *, overridden: Set[str]) -> Experiment:
    """The experiment with its policy in the shape of its checkpoint, and the tokenizer beside that.

    What a user has `overridden` ("text.tokenizer", a field of the policy) stays, and is compared with the checkpoint when that is read.
    """
    assert experiment.checkpoint is not None
    shape, _ = read_shape(locate(experiment.checkpoint, root))
    kept = {name: getattr(experiment.policy, name) for name in FREE} | {"head": "lm"}
    for path in overridden:
        part, _, name = path.partition(".")
        if part == "policy" and name not in FREE:
            kept[name] = getattr(experiment.policy, name)
    text = experiment.text
    if "text.tokenizer" not in overridden:
        text = dataclasses.replace(text, tokenizer=BESIDE)
    return dataclasses.replace(experiment, policy=dataclasses.replace(shape, **kept), text=text)


def read_tokenizer(experiment: Experiment, root: Root) -> SentencePieceTokenizer | TransformersTokenizer:
    """The tokenizer that an experiment names, other than one that it trains. Raises: FileNotFoundError where it is not."""
    name = experiment.text.tokenizer
    if name == BESIDE:
        assert experiment.checkpoint is not None, "held by the config"
        path = locate(experiment.checkpoint, root)
        folder = path if path.is_dir() else path.parent
        return find_tokenizer(folder if (folder / "tokenizer_config.json").is_file() else base_of(folder)[0])
    path = locate(name, root)
    return find_tokenizer(path) if path.is_dir() else load_tokenizer(path)
