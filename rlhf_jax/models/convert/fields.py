"""config.json of a checkpoint, read field by field: what is asked for, what must have one value, what nobody understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config.model import RopeScaling

# They say how a model is stored, trained, sampled from or named, not which function it is.
_NEUTRAL = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _sliding_window_pattern architectures attention_dropout
attn_pdrop bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout decoder_start_token_id dropout dtype embd_pdrop
eos_token_id finetuning_task gradient_checkpointing hidden_dropout id2label init_std initializer_factor initializer_range is_decoder
is_encoder_decoder label2id layerdrop model_type n_ctx num_labels output_attentions output_hidden_states output_past pad_token_id prefix
pretraining_tp problem_type resid_pdrop return_dict sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype torchscript transformers_version use_cache
attention_probs_dropout_prob dropout_rate hidden_dropout_prob
"""
NEUTRAL = frozenset(_NEUTRAL.split())


class Fields:
    """The fields of a config.json. Errors name the file and the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path):
        self._raw, self.path = raw, path
        self._read: set[str] = set()

    def get(self, name: str, default: Any = ...) -> Any:
        """A field's value; an absent one is what the family's configuration class says. Raises: ValueError where it has no default."""
        self._read.add(name)
        if name in self._raw:
            return self._raw[name]
        if default is ...:
            raise ValueError(f"{self.path}: no field {name!r}; expected a number")
        return default

    def count(self, name: str, default: Any = ...) -> Any:
        """A whole number above 0, or None where that is the default. Raises: ValueError for anything else."""
        value = self.get(name, default)
        if value is default and default is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; expected a whole number above 0")
        return value

    def number(self, name: str, default: Any = ..., *, optional: bool = False) -> Any:
        """A number above 0; None only where that is `optional`. Raises: ValueError for anything else."""
        value = self.get(name, default)
        return None if value is None and optional else self._positive(name, value)

    def _positive(self, name: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; expected a number above 0")
        return float(value)

    def only(self, **supported: Any) -> None:
        """Raises: ValueError where a field that is there has another value than the only one we compute (of a tuple, any)."""
        for name, values in supported.items():
            values = values if isinstance(values, tuple) else (values,)
            found = self.get(name, values[0])
            if found not in values:
                expected = " or ".join(map(repr, values))
                raise ValueError(f"{self.path}: field {name!r} is {found!r}; this library computes {expected} only")

    def one_of(self, name: str, default: Any, choices: Mapping[Any, Any]) -> Any:
        """What a field's value means here. Raises: ValueError listing the choices."""
        value = self.get(name, default)
        if value not in tuple(choices):  # also for a value that is no key at all, such as a list
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; expected {' or '.join(map(repr, choices))}")
        return choices[value]

    def rope(self, kind: str | None = None, *, base: float = 10_000.0) -> tuple[float, RopeScaling | None]:
        """(base, scaling), from `rope_parameters` or from `rope_theta` and `rope_scaling`, of a model that turns whole heads.

        `kind` is the type of layer where the parameters are given by type. Raises: ValueError for a scaling that is not computed here,
        and where only a part of each head is turned.
        """
        base, scaling, share = self.partial_rope(kind, base=base, share=1.0)
        if share != 1.0:
            raise ValueError(
                f"{self.path}: 'partial_rotary_factor' is {share}; this library computes 1.0 only for this model_type"
            )
        return base, scaling

    def partial_rope(
        self, kind: str | None = None, *, base: float = 10_000.0, share: float
    ) -> tuple[float, RopeScaling | None, float]:
        """(base, scaling, share of a head that is turned): `base` and `share` where the file does not say. Raises: as `rope`."""
        given, scaling = self._mapping("rope_parameters"), self._mapping("rope_scaling")
        if kind is not None and given:
            if not isinstance(given.get(kind), Mapping):
                raise ValueError(f"{self.path}: field 'rope_parameters' is {given}; expected those of {kind!r} in it")
            given = dict(given[kind])
        given = scaling | given
        values = {"rope_theta": base, "partial_rotary_factor": share}
        for name, default in values.items():
            own, beside = given.pop(name, None), self.get(name, None)
            first = next((value for value in (own, beside) if value is not None), default)
            values[name] = self._positive(name, first)
        names = ("rope_type", "type")
        name = next((given[key] for key in names if key in given), "default")
        given = {key: value for key, value in given.items() if key not in names}
        return values["rope_theta"], self._scaling(name, given), values["partial_rotary_factor"]

    def _mapping(self, name: str) -> dict[str, Any]:
        value = self.get(name, None)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; expected an object, or null")
        return dict(value or {})

    def _scaling(self, name: str, given: dict[str, Any]) -> RopeScaling | None:
        try:
            if name == "default":
                return None
            if name == "linear":
                return RopeScaling("linear", float(given["factor"]))
            if name == "llama3":
                return RopeScaling(
                    "llama3",
                    float(given["factor"]),
                    float(given["low_freq_factor"]),
                    float(given["high_freq_factor"]),
                    int(given["original_max_position_embeddings"]),
                )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: rope scaling {name!r} with {given}: {error!r}") from error
        raise ValueError(
            f"{self.path}: rope scaling {name!r}; this library computes 'default', 'linear' and 'llama3' only"
        )

    def windows(self, layers: int, default: list[str] | None = None) -> tuple[int, ...]:
        """The layers that see everything, from `layer_types`. Raises: ValueError for types of another kind or number."""
        types = self.get("layer_types", None) or default or ["full_attention"] * layers
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or not all(kind in known for kind in types):
            raise ValueError(
                f"{self.path}: field 'layer_types' is {types!r}; expected {layers} entries, of {' or '.join(known)}"
            )
        return tuple(n for n, kind in enumerate(types) if kind == "full_attention")

    def done(self) -> None:
        """Warns of fields that nobody asked for."""
        rest = sorted(
            name for name, value in self._raw.items() if name not in self._read | NEUTRAL and value not in (None, False)
        )
        if rest:
            warnings.warn(f"{self.path}: fields that are not understood, and ignored: {', '.join(rest)}", stacklevel=2)


def rope_parameters(base: float, scaling: RopeScaling | None, share: float | None = None) -> dict[str, Any]:
    """The inverse of `Fields.rope`, with a share that of `Fields.partial_rope`."""
    written: dict[str, Any] = {"rope_theta": base, "rope_type": "default" if scaling is None else scaling.kind}
    if share is not None:
        written["partial_rotary_factor"] = share
    if scaling is not None:
        written["factor"] = scaling.factor
        if scaling.kind == "llama3":
            written |= {
                "low_freq_factor": scaling.low_turns,
                "high_freq_factor": scaling.high_turns,
                "original_max_position_embeddings": scaling.original_length,
            }
    return written


def layer_types(layers: int, window: int | None, full: tuple[int, ...]) -> list[str]:
    """The inverse of `Fields.windows`."""
    return ["full_attention" if window is None or n in full else "sliding_attention" for n in range(layers)]
