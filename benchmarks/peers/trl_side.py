"""TRL and transformers do the workloads: `python -m benchmarks.peers.trl_side TASK` in the environment of trl.txt."""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
import os
import shutil
import tempfile
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from benchmarks.peers import inputs
from benchmarks.peers.protocol import Gate, Unavailable, repeat, run_side

VERSIONS = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


class Turns(transformers.TrainerCallback):
    """Asks the gate after every update, in the middle of the trainer's own loop."""

    def __init__(self, gate: Gate):
        self._gate = gate

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = not self._gate.passed()


def llama(task: dict[str, Any], labels: int | None = None) -> transformers.PreTrainedModel:
    """A model of the task's shape with random weights; with `labels`, one that gives so many scores per row."""
    size = task["model"]
    head: dict[str, Any] = {} if labels is None else {"num_labels": labels}
    config = transformers.LlamaConfig(
        vocab_size=size["vocab"],
        hidden_size=size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        intermediate_size=size["mlp"],
        max_position_embeddings=size["max_length"],
        rms_norm_eps=size["norm_eps"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **head,
    )
    kind = transformers.AutoModelForCausalLM if labels is None else transformers.AutoModelForSequenceClassification
    return kind.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def tokenizer(vocab: int, stop: int) -> transformers.PreTrainedTokenizerFast:
    """One word per token, its number, but for `stop`, which ends a text and pads it. At `vocab` that is one that the model cannot write, so
    that every response is written to its full length without anything that forbids it."""
    known = {str(token): token for token in range(vocab) if token != stop} | {"<stop>": stop}
    words = tokenizers.Tokenizer(WordLevel(known, unk_token="<stop>"))
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<stop>", pad_token="<stop>")


def arguments(kind: type, task: dict[str, Any], folder: str, **more: Any) -> Any:
    """Settings of a trainer: AdamW with clipping as ours, nothing logged, kept, recomputed or rounded; compiled, which makes an update 5 %
    faster, where there is what it needs."""
    settings = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": task["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": 1_000_000,  # the gate ends it
        "per_device_train_batch_size": task["rows"],
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "torch_compile": shutil.which("g++") is not None,
    }
    return kind(**(settings | more))


def train(trainer: Any, gate: Gate, updates: int = 1) -> None:
    """`updates` are those of one step of the workload."""
    trainer.add_callback(Turns(gate))
    gate.describe(trainer.model.num_parameters(), VERSIONS, updates)
    trainer.train()


def sft(task: dict[str, Any], gate: Gate, folder: str) -> None:
    rows = inputs.tokens(task["model"]["vocab"], task["rows"], task["length"]).tolist()
    # Many times the same rows, so that epochs, which cost something to begin, are rare.
    _sft(task, gate, folder, rows * 64)


def sft_padded(task: dict[str, Any], gate: Gate, folder: str) -> None:
    _sft(task, gate, folder, inputs.texts(task["model"]["vocab"], task["lengths"]), one_epoch=True)


def sft_packed(task: dict[str, Any], gate: Gate, folder: str) -> None:
    """A row at a time: the trainer lays the rows of a batch end to end, and attention over 8 of them costs 8 times as much per row."""
    rows = inputs.texts(task["model"]["vocab"], task["lengths"])
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": task["rows"]}
    _sft(task, gate, folder, rows, one_epoch=True, packing=True, **settings)


def _sft(task: dict[str, Any], gate: Gate, folder: str, rows: list[list[int]], one_epoch=False, **more: Any) -> None:
    """With `one_epoch`, a step of the workload is an epoch."""
    trainer = trl.SFTTrainer(
        model=llama(task),
        args=arguments(trl.SFTConfig, task, folder, max_length=task["length"], **more),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer(task["model"]["vocab"], 0),
    )
    batches = len(trainer.get_train_dataloader())
    train(trainer, gate, math.ceil(batches / trainer.args.gradient_accumulation_steps) if one_epoch else 1)


def reward(task: dict[str, Any], gate: Gate, folder: str) -> None:
    vocab = task["model"]["vocab"]
    chosen, rejected = (inputs.tokens(vocab, task["rows"], task["length"], seed).tolist() for seed in (0, 1))
    trainer = trl.RewardTrainer(
        model=llama(task, labels=1),
        args=arguments(trl.RewardConfig, task, folder, max_length=task["length"]),
        train_dataset=Dataset.from_dict({"chosen_ids": chosen * 64, "rejected_ids": rejected * 64}),
        processing_class=tokenizer(vocab, vocab),
    )
    train(trainer, gate)


def dpo(task: dict[str, Any], gate: Gate, folder: str) -> None:
    """Prompts of one token: the trainer takes texts with a common prompt, and closes each with the token that stops it."""
    vocab, rows = task["model"]["vocab"], task["rows"]
    chosen, rejected = (inputs.tokens(vocab, rows, task["length"] - 2, seed).tolist() for seed in (0, 1))
    pairs = {
        "prompt": [str(row) for row in range(rows)] * 64,
        "chosen": [f" {inputs.words(ids)} <stop>" for ids in chosen] * 64,
        "rejected": [f" {inputs.words(ids)} <stop>" for ids in rejected] * 64,
    }
    policy, reference = llama(task), llama(task)
    reference.load_state_dict(policy.state_dict())
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments(trl.DPOConfig, task, folder, max_length=task["length"]),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tokenizer(vocab, 0),
    )
    _check_lengths(trainer.train_dataset, task["length"])
    train(trainer, gate)


def _check_lengths(dataset: Dataset, length: int) -> None:
    row = dataset[0]
    found = [len(row["prompt_ids"]) + len(row[side]) for side in ("chosen_ids", "rejected_ids")]
    if found != [length, length]:
        raise ValueError(f"pairs of {found} tokens, not {length}")


def generation(task: dict[str, Any], gate: Gate, folder: str) -> None:
    model: Any = llama(task).eval()
    vocab, new = task["model"]["vocab"], task["new_tokens"]
    prompts = torch.tensor(inputs.tokens(vocab, task["prompts"], task["prompt_length"]), dtype=torch.long)
    config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new, pad_token_id=vocab, eos_token_id=vocab
    )

    def write() -> None:
        with torch.inference_mode():
            written = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
        if written.shape != (task["prompts"], task["prompt_length"] + new):
            raise ValueError(f"{tuple(written.shape)} tokens written")

    gate.describe(model.num_parameters(), VERSIONS)
    repeat(gate, write)


def grpo(task: dict[str, Any], gate: Gate, folder: str) -> None:
    vocab, length, samples = task["model"]["vocab"], task["prompt_length"], task["samples"]
    # The trainer loads the reference from where the policy came from, so both come from a folder.
    llama(task).save_pretrained(f"{folder}/policy")
    prompts = [inputs.words(ids) for ids in inputs.tokens(vocab, task["prompts"], length).tolist()]

    def different(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        if any(len(ids) != task["new_tokens"] for ids in completion_ids):
            raise ValueError("a response is shorter than it should be")
        return inputs.different_words(completions)

    trainer = trl.GRPOTrainer(
        model=f"{folder}/policy",
        reward_funcs=different,
        args=arguments(
            trl.GRPOConfig,
            task,
            folder,
            per_device_train_batch_size=task["prompts"] * samples,
            num_generations=samples,
            max_completion_length=task["new_tokens"],
            loss_type="grpo",
            beta=0.04,
            use_bias_correction_kl=False,
            model_init_kwargs={"dtype": torch.float32, "attn_implementation": "sdpa"},
            torch_compile=False,  # no faster, as most of the time is spent in `generate`, which it does not reach
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts * 64}),
        processing_class=tokenizer(vocab, vocab),
    )
    train(trainer, gate)


def ppo(task: dict[str, Any], gate: Gate, folder: str) -> None:
    raise Unavailable(f"TRL {trl.__version__} has no PPO trainer, neither in trl nor in trl.experimental")


WORKLOADS = {run.__name__: run for run in (sft, sft_padded, sft_packed, reward, dpo, generation, grpo, ppo)}


def serve(task: dict[str, Any], gate: Gate) -> None:
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    if task["workload"] not in WORKLOADS:
        raise Unavailable(f"the TRL side has no workload {task['workload']}")
    with tempfile.TemporaryDirectory() as folder:
        WORKLOADS[task["workload"]](task, gate, folder)


if __name__ == "__main__":
    run_side(serve)
