"""Adapters in PEFT's layout: what they do to torch's weights by PEFT's own rule is what they do here."""

from __future__ import annotations

import copy
import json

import jax
import numpy as np
import pytest
import torch
from families import batches, pair, scratch, seen, their_logits
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import LoRA
from rlhf_jax.models.convert.peft import CONFIG, WEIGHTS, load_adapters, read_adapter_config, save_adapters
from rlhf_jax.models.lora import adapted, with_lora

EVERYWHERE, UNFUSED = LoRA(rank=3, alpha=6.0), LoRA(rank=3, alpha=6.0, targets=("attention/o", "mlp/*"))
OUTPUT = LoRA(rank=3, alpha=6.0, targets=("attention/o",))  # of GPT-2, whose feed-forward has a module of the same name
CASES = [
    ("Llama 2", EVERYWHERE),
    ("Gemma 3", EVERYWHERE),
    ("OPT", EVERYWHERE),
    ("GPT-2", UNFUSED),
    ("GPT-2", OUTPUT),
    ("GPT-NeoX, Pythia", UNFUSED),
    ("T5", EVERYWHERE),
    ("T5", LoRA(rank=3, alpha=6.0, targets=("encoder/attention/q",))),  # the decoder has modules that end alike
    ("T5 v1.1, Flan-T5", LoRA(rank=3, alpha=6.0, targets=("cross/attention/v", "encoder/mlp/*", "decoder/mlp/gate"))),
]


def moved(name, lora):
    """Adapted parameters whose B is not zero."""
    fresh = adapted(pair(name).ours.params, lora, jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 100))
    return {**fresh, "lora": jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), fresh["lora"])}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {len(case[1].targets)}")
def saved(request):
    """(name, config, adapted parameters, the folder of their adapters)."""
    name, lora = request.param
    params, ours = moved(name, lora), pair(name).ours
    folder = scratch() / f"{name} adapters {len(lora.targets)}"
    if not folder.exists():
        save_adapters(folder, params, lora, ours.config, ours.family, str(pair(name).folder))
    return name, lora, params, folder


def test_adapters_added_to_torchs_weights_give_our_logits(saved):
    name, lora, params, folder = saved
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    model = copy.deepcopy(pair(name).theirs)
    modules = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}
    assert {
        module for module, _ in model.named_modules() if module.endswith(tuple(config["target_modules"]))
    } == modules
    for module in modules:
        a, b = (torch.tensor(tensors[f"base_model.model.{module}.lora_{side}.weight"]) for side in "AB")
        change = config["lora_alpha"] / config["r"] * (b @ a)
        weight = model.get_submodule(module).weight
        with torch.no_grad():
            weight += change.T if config["fan_in_fan_out"] else change
    batch = batches()["right"]
    real = seen(name, batch)
    ours = np.asarray(jax.jit(with_lora(pair(name).model, lora).logits)(params, batch))
    assert np.abs(ours - their_logits(pair(name).theirs, batch))[real].max() > 0.01
    np.testing.assert_allclose(ours[real], their_logits(model, batch)[real], atol=2e-5)


def test_what_was_written_is_read_bit_for_bit(saved):
    name, lora, params, folder = saved
    found, base = read_adapter_config(folder)
    assert (found.rank, found.alpha, base) == (lora.rank, lora.alpha, str(pair(name).folder))
    again = load_adapters(folder, found, pair(name).ours.config, pair(name).ours.family)
    assert jax.tree.structure(again) == jax.tree.structure(params["lora"])
    jax.tree.map(np.testing.assert_array_equal, again, params["lora"])


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX, Pythia"])
def test_adapters_of_a_part_of_a_tensor_have_no_form_there(name, tmp_path):
    ours = pair(name).ours
    with pytest.raises(ValueError, match="stores attention/k in one tensor with others, of which PEFT has one adapter"):
        save_adapters(tmp_path / "out", moved(name, EVERYWHERE), EVERYWHERE, ours.config, ours.family, "base")
    assert not (tmp_path / "out").exists()


def edited(folder, out, change):
    """The adapters with a change to (config, tensors)."""
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(config, tensors)
    out.mkdir()
    (out / CONFIG).write_text(json.dumps(config))
    save_file(tensors, out / WEIGHTS)
    return out


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, t: c.update(use_dora=True),
            r"adapter_config.json: field 'use_dora' is True; .* computes False only",
        ),
        (lambda c, t: c.update(peft_type="IA3"), "field 'peft_type' is 'IA3'"),
        (lambda c, t: c.pop("r"), r"not the config of an adapter \(KeyError\('r'\)\)"),
        (lambda c, t: c.update(base_model_name_or_path=None), "base_model_name_or_path is None"),
        (lambda c, t: t.pop(f"{LAYER}.lora_B.weight"), f"no tensor '{LAYER}.lora_B.weight'"),
        (lambda c, t: c.update(r=2), r"lora_A.weight' is \[3, 32\], expected \[2, 32\]"),
        (
            lambda c, t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32), np.float32)}),
            "no adapters of a llama here: base_model.model.lm_head.lora_A.weight",
        ),
        (lambda c, t: t.clear() or t.update(x=np.zeros(1, np.float32)), "no adapters of a llama here: x"),
    ],
)
def test_adapters_that_are_not_what_they_should_be_are_refused_by_name(change, message, tmp_path):
    name, ours = "Llama 2", pair("Llama 2").ours
    save_adapters(tmp_path / "whole", moved(name, EVERYWHERE), EVERYWHERE, ours.config, ours.family, "base")
    folder = edited(tmp_path / "whole", tmp_path / "broken", change)
    with pytest.raises(ValueError, match=message):
        load_adapters(folder, read_adapter_config(folder)[0], ours.config, ours.family)
