"""What an experiment trains on: its tokenizer, and its mixtures as encoded examples, held-out prompts apart."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rlhf_jax.config import Experiment
from rlhf_jax.config import Mixture as MixtureConfig
from rlhf_jax.data.adapters.stored import traced
from rlhf_jax.data.batching.batches import Mixture
from rlhf_jax.data.card import card, markdown
from rlhf_jax.data.erasure.seen import FILES as CARDS
from rlhf_jax.data.erasure.seen import Seen, seen_from_the_start
from rlhf_jax.data.flan import in_formats
from rlhf_jax.data.mixtures import Gathered, gather
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Prompt,
    Ranking,
    Record,
)
from rlhf_jax.data.splits import split_by_prompt
from rlhf_jax.data.tokens.chat import ChatTemplate, find_template
from rlhf_jax.data.tokens.templates import Frames
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer, Tokenizer, train_sentencepiece
from rlhf_jax.files import cache_directory, check_seal, read_sealed, write_atomic, write_sealed
from rlhf_jax.loops.pretrained import check_vocabulary, read_tokenizer
from rlhf_jax.loops.run import Run, digest
from rlhf_jax.processes import check_same
from rlhf_jax.worlds.instruct import InstructWorld

WORLD = "world:instruct"
IMITATED = (Demonstration, Conversation, Document)
"""What a policy learns to write."""
TOKENIZER = "tokenizer.model"
CORPUS = 6000  # texts of the world that its tokenizer is trained on
TRAINING = threading.Lock()  # of runs side by side the first trains the tokenizer, and the others find it


def world_of(experiment: Experiment) -> InstructWorld:
    """The instruction world of this experiment: its seed, its families."""
    families = experiment.world.families if experiment.world is not None else ()
    return InstructWorld(seed=experiment.seed, families=families)


def open_texts(run: Run) -> Texts:
    """The tokenizer and template of a run.

    Raises: ValueError where the tokenizer's vocabulary does not fit the policy; FileNotFoundError for a tokenizer that is not there.
    """
    experiment = run.experiment
    kind, _, size = experiment.text.tokenizer.partition(":")
    kept = run.directory / TOKENIZER
    if kept.exists():
        tokenizer: Tokenizer = kept_tokenizer(kept)
    elif kind == "train":
        # One tokenizer for all seeds: the corpus of seed 0. It stays with the run, whose checkpoints mean nothing under another.
        with TRAINING:
            corpus = InstructWorld(seed=0).corpus(CORPUS)
            trained = train_sentencepiece(corpus, int(size), cache_directory() / "tokenizers")
        check_seal(kept, trained.model)
        write_sealed(kept, trained.model)
        tokenizer = trained
    else:
        tokenizer = read_tokenizer(experiment, run.data)
    check_vocabulary(experiment, tokenizer)
    labels = () if experiment.classify is None else experiment.classify.labels
    text = experiment.text
    return Texts.of(tokenizer, template_of(experiment, tokenizer), text.length, text.prompt_length, labels)


def template_of(experiment: Experiment, tokenizer: Tokenizer) -> Frames | ChatTemplate:
    """The template of an experiment, which closes what an encoder reads with eos, as T5 and BERT had it. Raises: as `find_template`."""
    template = find_template(experiment.text.template, tokenizer)
    return dataclasses.replace(template, closed=template.closed or experiment.policy.kind != "decoder")


def kept_tokenizer(path: Path) -> SentencePieceTokenizer:
    """The tokenizer that a run has kept. Raises: ValueError where the file is not what was written."""
    try:
        return SentencePieceTokenizer(read_sealed(path))
    except ValueError as error:
        raise ValueError(
            f"{error}; take both from another seed of this experiment, or delete {path.name} alone to have it trained again"
        ) from error


@dataclasses.dataclass(frozen=True)
class Examples:
    """A mixture's records: training parts with the shares of rows they are to have, and the held-out prompts' records."""

    parts: tuple[tuple[tuple[Record, ...], float], ...]
    held_out: tuple[Record, ...]
    rejected: int

    @property
    def kind(self) -> type:
        return type(self.parts[0][0][0])

    @property
    def records(self) -> list[Record]:
        """Those of all training parts, one after the other."""
        return [record for part, _ in self.parts for record in part]

    def counts(self, texts: Texts) -> list[int]:
        """How many examples each of these records gives."""
        several = (Conversation, Document)
        return [len(texts.encode([record])) if isinstance(record, several) else 1 for record in self.records]

    def encoded(self, texts: Texts) -> Mixture:
        """The training parts as a mixture of encoded examples."""
        return Mixture(tuple((texts.encode(records), weight) for records, weight in self.parts))


def load_examples(
    run: Run, mixture: MixtureConfig, kind: type | tuple[type, ...], *, together: bool = False
) -> Examples:
    """All records of a mixture. The world's held-out share is its own held-out split; files are split by prompt.

    Raises: ValueError for a source of another kind of record than asked for, or one that is empty; and for sources of different kinds,
    unless these may stand together.
    """
    parts, held_out, rejected = [], [], 0
    kinds = kind if isinstance(kind, tuple) else (kind,)
    gathered = gathered_of(run, mixture)
    files = dict(zip(gathered.sources, gathered.records, strict=True))
    rejected = sum(map(len, gathered.rejected)) + sum(map(len, gathered.damage)) + gathered.report.dropped
    for source, weight in mixture.sources:
        if source == WORLD:
            train, aside = _world_demonstrations(run.experiment)
        else:
            sides = split_by_prompt(files[source], mixture.held_out, run.experiment.seed)
            train, aside = (_as_comparisons(side) if Comparison in kinds else side for side in sides)
            if mixture.flan is not None:
                worded = dataclasses.replace(mixture.flan, few_shot=0.0, inverted=0.0)
                train = tuple(in_formats(train, mixture.flan, run.experiment.seed))
                aside = tuple(in_formats(aside, worded, run.experiment.seed))
        wrong = next((r for r in train if not isinstance(r, kind)), None)
        if not train or wrong is not None:
            found = "no records" if wrong is None else f"records of kind {type(wrong).__name__}"
            raise ValueError(
                f"source {source!r} gave {found}; this stage reads {' or '.join(k.__name__ for k in kinds)}"
            )
        parts.append((train, weight * rate(len(train), mixture)))
        held_out += aside
    if not together and len({type(records[0]) for records, _ in parts}) > 1:
        raise ValueError(f"the sources {[name for name, _ in mixture.sources]} give records of different kinds")
    return Examples(tuple(parts), tuple(held_out), rejected)


def gathered_of(run: Run, mixture: MixtureConfig) -> Gathered:
    """The records of a mixture's files, read and cleaned once a run; the first time its data card is written beside the run's figures."""
    if mixture not in run.gathered:
        files = [source for source, _ in mixture.sources if source != WORLD]
        gathered = gather(files, run.data(), run.experiment.data) if files else gather((), Path(), run.experiment.data)
        run.gathered[mixture] = gathered
        if files:
            name = next(name for name, other in run.experiment.named_mixtures() if other == mixture)
            described = card(f"{run.experiment.name}, {name}", gathered)
            write_atomic(
                run.directory / CARDS / f"{name}.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n"
            )
            write_atomic(run.directory / CARDS / f"{name}.md", markdown(described))
    return run.gathered[mixture]


def gathered_records(run: Run, *mixtures: MixtureConfig | None) -> list[Record]:
    """All records of these mixtures that the run has read."""
    found = [run.gathered[mixture] for mixture in mixtures if mixture is not None and mixture in run.gathered]
    return [record for gathered in found for part in gathered.records for record in part]


def note_seen(run: Run, stage: str, seen: Seen) -> None:
    """Keeps with the run which records a stage learns from, for those who have to know which checkpoints saw one.

    Raises: ValueError where another process has other ones.
    """
    check_same(f"what stage {stage} learns from", digest(seen.ids))
    seen.save(run.directory / CARDS / f"seen_{stage}.npz")


def rate(examples: int, mixture: MixtureConfig) -> float:
    """What the weight of a source with so many examples is multiplied by: 1, or min(e, cap) ** (1 / temperature)."""
    if mixture.cap is None and mixture.temperature is None:
        return 1.0
    capped = examples if mixture.cap is None else min(examples, mixture.cap)
    return capped ** (1 / (mixture.temperature or 1.0))


def _as_comparisons(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records, with each ranking as its comparisons."""
    return tuple(
        traced(part, record) if isinstance(record, Ranking) else part
        for record in records
        for part in (record.comparisons() if isinstance(record, Ranking) else (record,))
    )


def _world_demonstrations(experiment: Experiment) -> tuple[tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    world, config = world_of(experiment), experiment.world
    if config is None:
        raise ValueError(f"{WORLD} is a source, but the experiment sets no world")
    draw = partial(world.demonstrations, flawed=config.flawed, chatty=config.chatty)
    train, aside = draw(config.demonstrations), draw(experiment.evaluation.prompts, split="held_out_prompts")
    return tuple(train), tuple(aside)


def policy_prompts(run: Run) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """(training, held-out) prompts: of the experiment's mixture; else the world's, behind its demonstrations; else those of the first stage
    that reads replies to any.

    Raises: ValueError where fewer prompts are held out than the evaluation asks for.
    """
    experiment, mixture = run.experiment, run.experiment.prompts
    count, config = experiment.evaluation.prompts, experiment.world
    if mixture is None and config is not None:
        world = world_of(experiment)
        train = world.prompts("train", config.prompts, start=config.demonstrations)
        return train, world.prompts("held_out_prompts", count)
    name = "prompts"
    if mixture is None:
        found = first_mixture(experiment)
        if found is None:
            return [], []
        name, mixture = found
    examples = load_examples(run, mixture, (Prompt, *IMITATED, Comparison, LabelledReply), together=True)
    train = _distinct(record for records, _ in examples.parts for record in records)
    held_out = _distinct(examples.held_out)
    if len(held_out) < count:
        raise ValueError(
            f"evaluation.prompts={count}, but {name}.held_out={mixture.held_out} leaves {len(held_out)} held out"
        )
    return train, held_out[:count]


def first_mixture(experiment: Experiment) -> tuple[str, MixtureConfig] | None:
    """(field, mixture) of the first stage that reads replies to prompts; that of a reward model counts where the best of n is asked for."""
    names = ["sft", "preference", "ilql", *(["reward"] if experiment.evaluation.best_of is not None else [])]
    mixtures = ((name, getattr(getattr(experiment, name), "data", None)) for name in names)
    return next(((f"{name}.data", mixture) for name, mixture in mixtures if mixture is not None), None)


def stage_examples(run: Run) -> dict[str, Examples]:
    """What the stages before PPO read from files, by stage; SFT loads its own.

    Raises: what `load_examples` raises, and ValueError for held-out replies that KTO cannot measure.
    """
    experiment = run.experiment
    replies = (Comparison, LabelledReply)
    by_kto = experiment.preference is not None and experiment.preference.objective == "kto"
    kinds = {
        "reward": (Comparison, Labelled),
        "preference": replies if by_kto else (Comparison,),
        "ilql": replies,
    }
    found: dict[str, Examples] = {}
    for name, kind in kinds.items():
        mixture = getattr(getattr(experiment, name), "data", None)
        if mixture is not None:
            found[name] = load_examples(run, mixture, kind, together=kind == replies)
            note_seen(run, name, seen_from_the_start(found[name].records))
    if by_kto and "preference" in found and len(_distinct(found["preference"].held_out)) == 1:
        raise ValueError(
            "preference.data.held_out leaves one prompt, and KTO measures from replies to other prompts: raise it, or set it to 0"
        )
    return found


def _distinct(records: Iterable[Record]) -> list[Prompt]:
    """The prompts of the records, each once, in order."""
    prompts = (
        record if isinstance(record, Prompt) else record.prompt
        for record in records
        if not isinstance(record, Labelled | Classified | Document)
    )
    return list({prompt.key: prompt for prompt in prompts}.values())
