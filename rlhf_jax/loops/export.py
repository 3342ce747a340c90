"""A trained model out of a run: a folder that transformers reads, or a llama2.c file with the tokenizer beside it."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_jax import __version__
from rlhf_jax.checkpoint import best_measured, faults, in_words, load_part, newest_intact
from rlhf_jax.config import ONE_DEVICE, Experiment, LoRA, ModelConfig
from rlhf_jax.data.sources import find_data_root
from rlhf_jax.data.tokens.templates import Frames
from rlhf_jax.data.tokens.tokenizer import ending_with, save_tokenizer
from rlhf_jax.files import whole_folder
from rlhf_jax.frozen import Frozen
from rlhf_jax.loops.adapters import check_base
from rlhf_jax.loops.pipeline import start_params
from rlhf_jax.loops.pretrained import HUB, Root, base_of, locate, read_shape, read_tokenizer
from rlhf_jax.loops.run import Run, open_run
from rlhf_jax.loops.sources import TOKENIZER, kept_tokenizer, template_of
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.family import Family
from rlhf_jax.models.convert.llama2c import check_llama2c, save_llama2c
from rlhf_jax.models.convert.peft import save_adapters
from rlhf_jax.models.convert.save import family_of, lost_fields, save_pretrained
from rlhf_jax.models.lora import BASE, merged
from rlhf_jax.models.params import carry_over, without_scores
from rlhf_jax.overrides import from_dict
from rlhf_jax.report.runs import CONFIG, SEED, read_json, seed_directories
from rlhf_jax.types import Params

MODEL = "model.bin"
STAGES = ("sft", "reward", "preference", "ilql", "classify", "ppo")


Take = Literal["newest", "best"]


class Exported(NamedTuple):
    """What was exported: a model after so many of the steps of a stage, and in which form."""

    stage: str
    step: int
    steps: int
    form: str


def read_experiment(directory: Path) -> Experiment:
    """The experiment whose run a directory holds. Raises: FileNotFoundError where it holds none, ValueError for a study."""
    config = read_json(directory / CONFIG, None)
    if config is None:
        raise FileNotFoundError(f"{directory} holds no run: there is no {CONFIG} in it")
    if "policy" not in config:
        raise ValueError(f"{directory} holds a study of algorithms, which trains no model that is kept")
    return from_dict(Experiment, config)


def seed_directory(directory: Path, seed: int | None) -> Path:
    """The folder of a run's seed, by default of the first. Raises: FileNotFoundError naming the seeds that there are."""
    found = seed_directories(directory)
    wanted = [path for path in found if seed is None or path.name == f"{SEED}{seed}"]
    if not wanted:
        there = ", ".join(path.name.removeprefix(SEED) for path in found) or "none"
        raise FileNotFoundError(f"{directory} has no seed {'at all' if seed is None else seed}; there are: {there}")
    return wanted[0]


def seed_of(directory: Path) -> int:
    """The seed whose folder this is."""
    return int(directory.name.removeprefix(SEED))


def export_model(
    experiment: Experiment,
    directory: Path,
    out: Path,
    data_root: Path | None = None,
    *,
    model: Literal["policy", "reward", "classifier"] = "policy",
    form: Literal["transformers", "peft", "llama2.c"] = "transformers",
    dtype: Literal["float32", "bfloat16"] = "float32",
    take: Take = "newest",
) -> Exported:
    """Writes a model of one seed's folder to the folder `out`: its last policy, reward model or classifier.

    It is that of the stage's newest checkpoint, or of the one with the lowest held-out loss.

    transformers: what `AutoModelForCausalLM` (of an encoder-decoder `AutoModelForSeq2SeqLM`), `AutoModelForSequenceClassification` and
    `AutoTokenizer` read, the run's template as chat template. peft: the adapters alone, of a policy with `lora` whose one stage began with
    the experiment's checkpoint. llama2.c: its .bin file, with the tokenizer as it is. The run is only read, so that it may still be going.
    Raises: ValueError for an experiment without such a model, or one that the format cannot express; FileNotFoundError where the stage
    has no checkpoint, FileExistsError where `out` is not empty.
    """
    root, experiment = partial(find_data_root, data_root), dataclasses.replace(experiment, seed=seed_of(directory))
    if form != "transformers" and dtype != "float32":
        raise ValueError(f"the format {form} is written in float32, not {dtype}; leave --dtype out")
    stage, steps, keys = MODELS[model](experiment)
    shapes = {"policy": experiment.policy, "reward": experiment.reward_shape, "classifier": experiment.classifier_shape}
    shape = shapes[model] or experiment.policy
    if form == "llama2.c":
        check_llama2c(shape)
    family = family_to_write(experiment, shape, root) if form == "transformers" else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; choose another --out")
    trained = experiment.text.tokenizer.startswith("train:")
    tokenizer = kept_tokenizer(directory / TOKENIZER) if trained else read_tokenizer(experiment, root)
    step, params = saved_params(directory / "checkpoints" / stage, *keys, take=take)
    if form == "peft":
        lora, base, family = adapters_of(experiment, stage, model, root)
        save_adapters(out, params, lora, shape, family, base)
        return Exported(stage, step, steps, f"adapters of {base}")
    fresh = model == "reward" and experiment.reward is not None and experiment.reward.init == "random"
    if experiment.lora is not None and not fresh:
        run = open_run(dataclasses.replace(experiment, mesh=ONE_DEVICE), directory, data_root=data_root)
        params = with_base(run, stage, params, experiment.lora)
    if experiment.ilql is not None and model == "policy":
        warnings.warn("the critics of the ilql stage are left out: it is the policy that they guide", stacklevel=2)
    if model == "policy":
        params = without_scores(params)
    if family is not None:
        template = template_of(experiment, tokenizer)
        tokenizer = ending_with(tokenizer, template.end)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
        about = model_card(experiment, stage, step, model)

        def beside(folder: Path) -> None:
            # Its own chat template goes with the tokenizer.
            tokenizer.save_pretrained(folder, template if isinstance(template, Frames) else None)
            (folder / "README.md").write_text(about, encoding="utf-8")

        labels = () if experiment.classify is None else experiment.classify.labels
        save_pretrained(out, shape, params, family=family, dtype=dtype, ids=ids, labels=labels, beside=beside)
    else:
        with whole_folder(out) as folder:
            save_llama2c(folder / MODEL, shape, params)
            save_tokenizer(tokenizer, folder)
    return Exported(
        stage,
        step,
        steps,
        form if family is None else f"{form}: {family.architecture if shape.lm_head else family.scorer}",
    )


def saved_params(folder: Path, *keys: str, take: Take = "newest") -> tuple[int, Params]:
    """(step, parameters) of a stage's newest intact checkpoint, of which it warns of damaged ones, or of its best.

    Raises: FileNotFoundError where there is none, ValueError where the best is damaged.
    """
    if take == "best":
        best = best_measured(folder)
        if best is None:
            raise FileNotFoundError(f"{folder}: no checkpoint has a held-out loss; take the newest, without --take")
        wrong = faults(best)
        if wrong:
            raise ValueError(in_words(best, wrong))
        return int(best.name), load_part(best, *keys)
    newest, damaged = newest_intact(folder)
    for checkpoint, wrong in damaged.items():
        warnings.warn(f"{in_words(checkpoint, wrong)}. It was left where it is.", stacklevel=3)
    if newest is None:
        raise FileNotFoundError(
            f"{folder} has no intact checkpoint: stage {folder.name!r} of this run has not come to one"
        )
    return int(newest.name), load_part(newest, *keys)


def adapters_of(experiment: Experiment, stage: str, model: str, root: Root) -> tuple[LoRA, str, Family]:
    """(config, checkpoint, family) of a policy whose adapters mean something by themselves. Raises: ValueError where they do not."""
    if experiment.lora is None or experiment.checkpoint is None or model != "policy":
        raise ValueError(
            "only the policy of an experiment with lora and a checkpoint has adapters to export; leave --format out"
        )
    if stage != "sft" and experiment.sft is not None:
        raise ValueError(
            f"the adapters of stage {stage} are of the policy that sft left, not of {experiment.checkpoint}: export it merged, without "
            "--format"
        )
    path = locate(experiment.checkpoint, root)
    _, family = read_shape(path)
    if family is None or base_of(path)[1] is not None:
        raise ValueError(
            f"{experiment.checkpoint} is no whole checkpoint that PEFT reads; export the policy merged, without --format"
        )
    hub = experiment.checkpoint.startswith(HUB)
    return experiment.lora, experiment.checkpoint.removeprefix(HUB) if hub else str(path.resolve()), family


def with_base(run: Run, stage: str, params: Params, lora: LoRA) -> Params:
    """The whole model of a stage that trained adapters: they are merged into what the stage began with, which is made again."""
    experiment, checkpoints = run.experiment, run.checkpoints
    before = "sft" if stage != "sft" and experiment.sft is not None else None
    if before is None:
        base = start_params(run, dataclasses.replace(experiment.policy, head="lm"))
    else:
        assert experiment.sft is not None, "just asked"
        step, tuned = saved_params(checkpoints / before, "params")
        if step != experiment.sft.optim.total:
            raise ValueError(
                f"{checkpoints / before}: the newest intact checkpoint is of step {step}, but {stage} began with that of step "
                f"{experiment.sft.optim.total}; run it again with --resume"
            )
        base = with_base(run, before, tuned, lora)
    shape = {"reward": experiment.reward_shape, "classify": experiment.classifier_shape}.get(stage)
    if shape is not None:
        base = carry_over(base, run.programs.maker(lambda: build_model(shape).init)(run.key(stage)))
    whole = {**params, BASE: Frozen(without_scores(base))}
    check_base(run, stage, whole, write=False)
    return merged(whole, lora)


def family_to_write(experiment: Experiment, shape: ModelConfig, root: Root) -> Family:
    """The family of the checkpoint that the model started from, if that can say its shape, else the first that can.

    Raises: ValueError where none can.
    """
    if experiment.checkpoint is not None:
        _, family = read_shape(locate(experiment.checkpoint, root))
        if family is not None and not lost_fields(shape, family):
            return family
    return family_of(shape)


def model_card(experiment: Experiment, stage: str, step: int, model: str) -> str:
    """What a reader of the folder should know: what it is, what it was trained on, how it is to be used."""
    sources = sorted({source for mixture in experiment.mixtures() for source, _ in mixture.sources})
    trained = [name for name in STAGES if getattr(experiment, name) is not None]
    use = {
        "policy": "Prompts are written by the chat template beside it.",
        "reward": "Its one logit is the score of a reply, as it came out of training: neither centred nor normalised.",
        "classifier": "It reads texts as they are, and says which class they are of.",
    }[model]
    return (
        f"---\nlibrary_name: transformers\ntags: [rlhf_jax, {model}]\n---\n# {experiment.name}: {model}\n\n"
        f"Trained by rlhf_jax {__version__}, experiment `{experiment.name}` at scale `{experiment.scale}`, seed {experiment.seed}: "
        f"stage `{stage}` after {step} steps (stages of the experiment: {', '.join(trained)}).\n\n"
        f"- Started from: {experiment.checkpoint or 'random weights'}\n"
        f"- Data: {', '.join(f'`{source}`' for source in sources) or 'samples of the experiment itself'}; its licences apply\n"
        f"- Template: `{experiment.text.template}`. {use}\n\n"
        "Not evaluated for anything but what the run's report shows.\n"
    )


def reward_model(experiment: Experiment) -> tuple[str, int, tuple[str, ...]]:
    """(stage, its steps, where in its state the reward model is). Raises: ValueError without one."""
    if experiment.reward is None:
        raise ValueError(f"{experiment.name} trains no reward model: it has no stage reward")
    return "reward", experiment.reward.optim.total, ("params",)


def classifier(experiment: Experiment) -> tuple[str, int, tuple[str, ...]]:
    """(stage, its steps, where in its state the classifier is). Raises: ValueError without one."""
    if experiment.classify is None:
        raise ValueError(f"{experiment.name} trains no classifier: it has no stage classify")
    return "classify", experiment.classify.optim.total, ("params",)


def last_policy(experiment: Experiment) -> tuple[str, int, tuple[str, ...]]:
    """(the last stage that trains the policy, its steps, where in its state the policy is). Raises: ValueError without one."""
    if experiment.ppo is not None:
        return "ppo", experiment.ppo.iterations, ("policy", "params" if experiment.ppo.ema is None else "ema")
    for stage in ("preference", "sft"):
        config = getattr(experiment, stage)
        if config is not None:
            return stage, config.optim.total, ("params",)
    raise ValueError(f"{experiment.name} trains no policy: it has no stage sft, preference or ppo")


MODELS = {"policy": last_policy, "reward": reward_model, "classifier": classifier}
