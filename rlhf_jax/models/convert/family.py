"""What a family of models is: how its config.json becomes a `ModelConfig` and back, and its table of tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.table import Tensor

Table = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    model_type, architecture: what config.json calls it, and the class with an output layer that transformers has for it
    read(fields) -> the model's shape; write(config) -> the fields of config.json that say it
    table(config) -> path of a parameter of ours, such as "attention/q/kernel", -> its tensor; paths of layers without "layers/", of those
    of an encoder-decoder "encoder/" or "decoder/" in front
    prefix: what stands before every name of the trunk; its first part may be missing, as it is where only the trunk was saved
    head, score: names of the output layer of an untied model and of the layer that gives scores
    called: what the names of its other classes begin with, where that is not how `architecture` begins
    heads(config) -> all tensors of the heads, with whole names, where they are more than these two
    own_output: whether the output layer is tied only where the file has none, whatever config.json says
    buffers: patterns of names that hold nothing to learn, or nothing that is computed here
    copies: names of tensors that repeat another -> that other
    renamed: pattern of an old name of tensors -> what it became
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    table: Callable[[ModelConfig], Table]
    prefix: str
    head: str = "lm_head.weight"
    score: str = "score.weight"
    heads: Callable[[ModelConfig], Table] | None = None
    own_output: bool = False
    buffers: tuple[str, ...] = ()
    called: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def scorer(self) -> str:
        """The class that gives scores."""
        return f"{self.stem}ForSequenceClassification"

    @property
    def stem(self) -> str:
        """What the names of its classes begin with."""
        return self.called or re.sub(
            "(ForCausalLM|LMHeadModel|ForMaskedLM|ForConditionalGeneration)$", "", self.architecture
        )

    def current(self, name: str) -> str:
        """What a tensor of this name is called today."""
        for old, new in self.renamed.items():
            name = re.sub(old, new, name)
        return name

    def tensors(self, config: ModelConfig) -> dict[str, Tensor]:
        """Every parameter of a model of this config, the bias of a decoder's scalar head apart, by its path and with whole names."""
        found: dict[str, Tensor] = {}
        for path, tensor in self.table(config).items():
            stack, _, rest = path.partition("/") if path.startswith(("encoder/", "decoder/")) else ("", "", path)
            count = config.encoder_layers if stack == "encoder" else config.layers
            whole = "/".join(part for part in (stack, "layers", rest) if part) if tensor.per_layer else path
            found[whole] = dataclasses.replace(tensor, name=self.prefix + tensor.name, layers=count or 0)
        if self.heads is not None:
            return found | dict(self.heads(config))
        if config.lm_head and not config.tied:
            found["unembed/kernel"] = Tensor(self.head, "v d -> d v")
        if config.scalar_head:
            found["score/kernel"] = Tensor(self.score, "1 d -> d")
        return found


def normed(path: str, name: str, *, bias: bool) -> dict[str, Tensor]:
    """The lines of a norm."""
    lines = {f"{path}/scale": Tensor(f"{name}.weight", "d -> d")}
    return lines | ({f"{path}/bias": Tensor(f"{name}.bias", "d -> d")} if bias else {})


def linear(path: str, name: str, kernel: str, bias: str | None = None) -> dict[str, Tensor]:
    """The lines of a linear layer: its weight by the pattern `kernel`, its bias by `bias` where it has one."""
    lines = {f"{path}/kernel": Tensor(f"{name}.weight", kernel)}
    return lines | ({f"{path}/bias": Tensor(f"{name}.bias", bias)} if bias else {})
