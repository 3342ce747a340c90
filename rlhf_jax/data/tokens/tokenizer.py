"""Text to token ids and back: a sentencepiece model, trained here or read, or a transformers folder.

A tokenizer adds no special tokens to a text, and text that spells one ("</s>") stays text; `encode.py` alone places bos
and eos.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from rlhf_jax.data.tokens.templates import Frames
from rlhf_jax.files import read_sealed, write_atomic, write_sealed

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
"""What a tokenizer of transformers has its tokens in, where that is no .model file."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the library knows of a tokenizer. `pad` may equal `eos`: masks come from lengths, never from ids."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def eos(self) -> int: ...

    @property
    def pad(self) -> int: ...

    @property
    def specials(self) -> Mapping[str, int]:
        """Tokens that stand for no text, or are read whole, and how they are spelled."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are dropped."""
        ...


class SentencePieceTokenizer:
    """A sentencepiece model, given as bytes or as the path of a .model file; pad is eos where the model has none."""

    def __init__(self, model: bytes | Path) -> None:
        import sentencepiece

        self.model = model.read_bytes() if isinstance(model, Path) else model
        what = str(model) if isinstance(model, Path) else "the model given"
        try:
            self._pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise ValueError(f"{what} is not a sentencepiece model ({len(self.model)} bytes)") from error
        bos, eos, pad = self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.pad_id()
        if eos < 0:
            raise ValueError(f"{what} has no end-of-sequence piece; expected one such as </s>")
        self.vocab_size: int = self._pieces.get_piece_size()
        self.bos: int | None = bos if bos >= 0 else None
        self.eos: int = eos
        self.pad: int = pad if pad >= 0 else eos
        numbers = range(self.vocab_size)
        self.specials = {self.piece(number): number for number in numbers if self._pieces.is_control(number)}

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([int(i) for i in ids])

    def piece(self, number: int) -> str:
        """How a piece is spelled."""
        return self._pieces.id_to_piece(number)

    def save(self, path: Path) -> None:
        """Writes the .model file, whole or not at all."""
        write_atomic(path, self.model)

    def save_pretrained(self, folder: Path, template: Frames | None = None) -> None:
        """Writes the .model file and the folder that transformers reads; what `save_fast` raises."""
        from rlhf_jax.data.tokens.fast_tokenizer import save_fast

        self.save(folder / "tokenizer.model")
        save_fast(self.model, folder, template)


class TransformersTokenizer:
    """A tokenizer folder as transformers saves it; nothing is downloaded. Without bos and eos, cls and sep serve."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder} is no tokenizer that transformers reads ({type(error).__name__}: {said}); expected "
                "tokenizer.json with tokenizer_config.json, or a tokenizer_config.json that names a class and the files of that"
            ) from error
        bos, eos, pad = (getattr(self._tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        bos = bos if bos is not None else self._tokenizer.cls_token_id
        eos = eos if eos is not None else self._tokenizer.sep_token_id
        if eos is None:
            raise ValueError(f"the tokenizer in {folder} has no end-of-sequence token; set eos_token in its config")
        self.vocab_size: int = len(self._tokenizer)
        self.bos: int | None = bos
        self.eos: int = eos
        self.pad: int = pad if pad is not None else eos
        self.specials: dict[str, int] = self._tokenizer.get_added_vocab()
        self._unigram = _unigram_without_specials(self._tokenizer)
        self.render = self._render if self._tokenizer.chat_template else None

    def _render(self, messages: list[dict[str, str]], opening: bool) -> str:
        """The text of messages by the chat template of the folder. Raises: ValueError with what the template says against them."""
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
        except TemplateError as error:
            raise ValueError(str(error)) from error

    def encode(self, text: str) -> list[int]:
        if self._unigram is not None:
            return self._unigram.encode(text, add_special_tokens=False).ids
        # Without split_special_tokens a user who writes "<|endoftext|>" would end the prompt.
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        numbers = [int(i) for i in ids]
        return self._tokenizer.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save_pretrained(self, folder: Path, template: Frames | None = None) -> None:
        """Writes the folder that transformers reads; its chat template is that of `template`, or else the one it came with."""
        from rlhf_jax.data.tokens.fast_tokenizer import chat_template

        kept = self._tokenizer.chat_template
        if template is not None:
            # Not `bos_token`: where cls serves as bos, transformers has none.
            bos = None if self.bos is None else self._tokenizer.convert_ids_to_tokens(self.bos)
            eos = self._tokenizer.convert_ids_to_tokens(self.eos)
            self._tokenizer.chat_template = chat_template(template, bos, eos)
        try:
            self._tokenizer.save_pretrained(str(folder))
        finally:
            self._tokenizer.chat_template = kept


def _unigram_without_specials(tokenizer: Any) -> Any:
    """The tokenizer behind one of transformers that is a unigram model, such as T5's, for text alone; None for one of another kind.

    The pieces of such a model are found wherever they are spelled, "</s>" too, whatever `split_special_tokens` says. Here those of special
    tokens have a blank in them, which no text has at that point: blanks have become U+2581.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    text = tokenizer.backend_tokenizer.to_str()
    model = json.loads(text)["model"]
    if model["type"] != "Unigram":
        return None
    special = set(tokenizer.all_special_ids)
    pieces = [
        (f" {piece}" if number in special else piece, score) for number, (piece, score) in enumerate(model["vocab"])
    ]
    copy = Tokenizer.from_str(text)
    copy.model = Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    return copy


AnyTokenizer = TypeVar("AnyTokenizer", bound=Tokenizer)


def ending_with(tokenizer: AnyTokenizer, piece: str) -> AnyTokenizer:
    """The tokenizer with that special token as its eos; as it is where it has no such token."""
    if piece not in tokenizer.specials:
        return tokenizer
    changed: Any = copy.copy(tokenizer)
    changed.eos = tokenizer.specials[piece]
    return changed


def load_tokenizer(path: Path) -> SentencePieceTokenizer | TransformersTokenizer:
    """The tokenizer of a sentencepiece .model file or of a transformers folder.

    A folder whose only tokenizer is a .model file is read by sentencepiece itself: transformers 5 orders the merges of such a file by
    number instead of score, and splits runs of blanks otherwise than the model was trained on.
    """
    if path.is_dir():
        return _sentencepiece_of(path) or TransformersTokenizer(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer {path}; expected a sentencepiece .model file or a transformers folder")
    return SentencePieceTokenizer(path)


def _sentencepiece_of(folder: Path) -> SentencePieceTokenizer | None:
    """The tokenizer of a folder that has one .model file, nothing of another format, no tokens beyond those of the file, and its eos."""
    models = sorted(folder.glob("*.model"))
    if len(models) != 1 or any((folder / name).is_file() for name in VOCABULARIES):
        return None
    tokenizer = SentencePieceTokenizer(models[0])
    settings, added = (
        json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "added_tokens.json")
    )
    ids = [int(number) for number in (*settings.get("added_tokens_decoder", {}), *added.values())]
    eos = settings.get("eos_token") or tokenizer.piece(tokenizer.eos)
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return tokenizer if max(ids, default=0) < tokenizer.vocab_size and eos == tokenizer.piece(tokenizer.eos) else None


def find_tokenizer(folder: Path) -> SentencePieceTokenizer | TransformersTokenizer:
    """The tokenizer that lies beside a checkpoint: the one sentencepiece .model file, else the folder as transformers saves it.

    Raises: FileNotFoundError where there is neither, ValueError where there are several .model files.
    """
    if any((folder / name).is_file() for name in ("tokenizer_config.json", *VOCABULARIES)):
        return load_tokenizer(folder)
    models = sorted(folder.glob("*.model"))
    if not models:
        raise FileNotFoundError(
            f"{folder} has no tokenizer: expected a sentencepiece *.model, or tokenizer_config.json"
        )
    if len(models) > 1:
        raise ValueError(f"{folder}: which tokenizer is it? found {', '.join(path.name for path in models)}")
    return load_tokenizer(models[0])


def save_tokenizer(tokenizer: SentencePieceTokenizer | TransformersTokenizer, folder: Path) -> None:
    """Writes a tokenizer into a folder so that `find_tokenizer` reads it there: of a sentencepiece model that alone."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.save(folder / "tokenizer.model")
    else:
        tokenizer.save_pretrained(folder)


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    cache: Path | None = None,
    *,
    kind: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 1.0,
) -> SentencePieceTokenizer:
    """A tokenizer of exactly `vocab_size` pieces learnt from the texts; same texts, same settings: same bytes.

    Any Unicode text survives encode and decode, newlines and runs of spaces included, except U+2581, which
    sentencepiece uses for the space. Digits are single tokens and so are newlines; characters that were not seen become
    bytes. No blank is put in front of a text, so prompt and reply tokenised apart read as one text. `cache` is a folder
    of models by content: a model found there is not trained again. Source: Kudo & Richardson 2018 (arXiv:1808.06226).

    Raises: ValueError when the texts are empty, or hold too few or too many distinct pieces for `vocab_size`.
    """
    import sentencepiece

    # Newline is a piece of its own that no other crosses, so training on lines is the same, and texts may be long.
    lines = [line for text in texts for line in text.split("\n") if line]
    if not lines:
        raise ValueError("no text to train a tokenizer on; expected at least one text that is not empty")
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "model_type": kind,
        "character_coverage": character_coverage,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["\n"],
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "input_sentence_size": 0,  # no sampling of lines
        # Longer lines would be left out silently.
        "max_sentence_length": max(len(line.encode("utf-8")) for line in lines),
        "num_threads": 1,  # the order of threads would show in the pieces
    }
    fingerprint = _fingerprint(lines, settings, sentencepiece.__version__)
    stored = None if cache is None else cache / f"sentencepiece-{fingerprint}.model"
    if stored is not None and stored.is_file():
        with contextlib.suppress(ValueError):  # a damaged one is trained again
            return SentencePieceTokenizer(read_sealed(stored))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **settings
        )
    except RuntimeError as error:
        reason = re.sub(r"^.*\] ", "", str(error))
        raise ValueError(f"cannot learn {vocab_size} pieces from {len(lines)} lines: {reason}") from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if stored is not None:
        write_sealed(stored, tokenizer.model)
    return tokenizer


def _fingerprint(lines: Sequence[str], settings: dict[str, Any], version: str) -> str:
    digest = hashlib.sha256(json.dumps([version, settings], sort_keys=True).encode())
    for line in lines:
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()
