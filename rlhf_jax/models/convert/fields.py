"""config.json of a checkpoint, read field by field: what is asked for, what must have one value, what nobody understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config.model import RopeScaling

# They say how a model is stored, trained, sampled from or named, not which function it is.
_NEUTRAL = """
_attn_implementation_autoset _commit_hash _name_or_path _sliding_window_pattern architectures attention_dropout attn_pdrop bos_token_id
cache_implementation chunk_size_feed_forward classifier_dropout decoder_start_token_id dropout dtype embd_pdrop eos_token_id
finetuning_task gradient_checkpointing hidden_dropout id2label init_std initializer_factor initializer_range is_decoder
is_encoder_decoder label2id layerdrop model_type n_ctx num_labels output_attentions output_hidden_states output_past pad_token_id prefix
pretraining_tp problem_type resid_pdrop return_dict sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype torchscript transformers_version use_cache
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
        if value not in choices:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; expected {' or '.join(map(repr, choices))}")
        return choices[value]

    def rope(self, kind: str | None = None, *, base: float = 10_000.0) -> tuple[float, RopeScaling | None, float]:
        """(base, scaling, share of a head that is turned), from `rope_parameters` or from `rope_theta` and `rope_scaling`.

        `kind` is the type of layer where the parameters are given by type. Raises: ValueError for a scaling that is not computed here.
        """
        given = self.get("rope_parameters", None)
        given = dict(given[kind] if given and kind is not None and kind in given else given or {})
        scaling = self.get("rope_scaling", None)
        given = dict(scaling or {}) | given
        found = given.pop("rope_theta", None)
        base = float(self.get("rope_theta", base) if found is None else found)
        share = float(given.pop("partial_rotary_factor", 1.0))
        names = ("rope_type", "type")
        name = next((given[key] for key in names if key in given), "default")
        given = {key: value for key, value in given.items() if key not in names}
        return base, self._scaling(name, given), share

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
        known = {"sliding_attention", "full_attention"}
        if len(types) != layers or not set(types) <= known:
            raise ValueError(
                f"{self.path}: layer_types has {len(types)} entries, {sorted(set(types))}; expected {layers}, of {sorted(known)}"
            )
        return tuple(n for n, kind in enumerate(types) if kind == "full_attention")

    def done(self) -> None:
        """Warns of fields that nobody asked for."""
        rest = sorted(
            name for name, value in self._raw.items() if name not in self._read | NEUTRAL and value not in (None, False)
        )
        if rest:
            warnings.warn(f"{self.path}: fields that are not understood, and ignored: {', '.join(rest)}", stacklevel=2)


def rope_parameters(base: float, scaling: RopeScaling | None, share: float = 1.0) -> dict[str, Any]:
    """The inverse of `Fields.rope`."""
    written: dict[str, Any] = {"rope_theta": base, "rope_type": "default" if scaling is None else scaling.kind}
    if share != 1.0:
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
