"""A sentencepiece model as the tokenizer of transformers, in the folder layout that `AutoTokenizer` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokens.templates import Frames

BLANK = "\u2581"  # what sentencepiece writes for a blank
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)  # kinds of pieces, as sentencepiece numbers them
PROBES = (
    "Which comes first: black, hat?",
    "  two  blanks ",
    "\n\nHuman: a\n",
    "\ta\t",
    "line one\nline two\n\n\tindented = f(x) + 12345",
    "写一首诗。床前明月光，疑是地上霜",
    "naïve café 🙂 \U0001f3f3\ufe0f x²",
    "",
    "a",
)


def save_fast(model: bytes, folder: Path, template: Frames | None = None, probes: Sequence[str] = PROBES) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, for a template, chat_template.jinja.

    A conversation that `AutoTokenizer` makes of messages starts with bos and is the text of `template`; where that closes prompts, eos
    stands behind it, and behind any other text.
    Raises: ValueError where the tokenizer written would make other tokens of one of the `probes` than the sentencepiece model does.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerFast

    pieces: Any = SentencePieceProcessor(model_proto=model)
    closed = template is not None and template.closed
    written: Any = PreTrainedTokenizerFast(tokenizer_object=fast_tokenizer(model, closed=closed), **_special(pieces))
    for text in probes:
        expected, found = pieces.encode(text), written.encode(text, add_special_tokens=False)
        if expected != found:
            raise ValueError(f"transformers would read {text!r} as {found}, the sentencepiece model reads {expected}")
    if template is not None:
        written.chat_template = chat_template(template, written.bos_token, written.eos_token)
    written.save_pretrained(str(folder))


def fast_tokenizer(model: bytes, *, closed: bool = False) -> Any:
    """A `tokenizers.Tokenizer` that makes the same tokens as a sentencepiece model, bos in front of a text, eos behind a `closed` one.

    Raises: ValueError for a model that is neither BPE nor unigram.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

    described: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # its classes are made at run time
    proto = described.ModelProto()
    proto.ParseFromString(model)
    pieces, trainer, rules = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    unknown = next(piece.piece for piece in pieces if piece.type == UNKNOWN)
    if trainer.model_type == 2:
        merges = _merges({piece.piece: piece.score for piece in pieces if piece.type == NORMAL}, vocabulary)
        kind: Any = models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=trainer.byte_fallback
        )
    elif trainer.model_type == 1:
        scores = [(piece.piece, piece.score) for piece in pieces]
        kind = models.Unigram(scores, vocabulary[unknown], byte_fallback=trainer.byte_fallback)
    else:
        raise ValueError(f"a sentencepiece model of type {trainer.model_type}; expected BPE (2) or unigram (1)")
    tokenizer = Tokenizer(kind)
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        # Blanks alone, as sentencepiece does: a newline at an end stays. \A and \z, as ^ and $ match at every line.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    stripped = [decoders.Strip(" ", left=1)] if rules.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece.piece, normalized=False, special=True) for piece in pieces if piece.type == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(piece.piece, normalized=False) for piece in pieces if piece.type == USER_DEFINED])
    front = [trainer.bos_piece] if trainer.bos_piece in vocabulary else []
    back = [trainer.eos_piece] if closed and trainer.eos_piece in vocabulary else []
    if front or back:
        first, second = [*front, "$A", *back], [f"{piece}:1" for piece in (*front, "$B", *back)]
        special = [(piece, vocabulary[piece]) for piece in (*front, *back)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(first), pair=" ".join([*first, *second]), special_tokens=special
        )
    return tokenizer


def _merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which BPE joins them: those that make the piece of the best score first."""

    def splits() -> Iterator[tuple[float, int, int, str, str]]:
        for piece, score in scores.items():
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in scores and right in scores:
                    yield -score, vocabulary[left], vocabulary[right], left, right

    return [(left, right) for *_, left, right in sorted(splits())]


def _special(pieces: Any) -> dict[str, str]:
    """The special tokens that there are, by the names that transformers has for them; pad is eos where the model has none."""
    numbers = {"unk_token": pieces.unk_id(), "bos_token": pieces.bos_id(), "eos_token": pieces.eos_id()}
    numbers["pad_token"] = pieces.pad_id() if pieces.pad_id() >= 0 else pieces.eos_id()
    return {name: pieces.id_to_piece(number) for name, number in numbers.items() if number >= 0}


def chat_template(template: Frames, bos: str | None, eos: str | None = None) -> str:
    """The Jinja template that writes messages as `Template.prompt` does, after the token `bos` where there is one.

    Prompts that the template closes end with `eos`.
    """

    def quoted(text: str) -> str:
        return "{{ " + repr(text) + " }}" if text else ""

    def turn(form: str) -> str:
        before, after = form.split("{}")
        return quoted(before) + "{{ message['content'] }}" + quoted(after)

    opening = template.opening + (eos or "" if template.closed else "")
    first = "{% if messages[0]['role'] != 'system' %}" + quoted(template.preamble) + "{% endif %}"
    system, user, held = turn(template.system), turn(template.user), ""
    if template.system_in_user:
        # Jinja forgets what is set inside a loop, but for attributes of a namespace.
        held = "{% set held = namespace(text='') %}"
        before, after = (repr(part) for part in template.system.split("{}"))
        system = "{% set held.text = held.text ~ " + before + " ~ message['content'] ~ " + after + " %}"
        before, after = (quoted(part) for part in template.user.split("{}"))
        user = before + "{{ held.text ~ message['content'] }}" + after + "{% set held.text = '' %}"
    return "".join(
        [
            quoted(bos or "") + held,
            first if template.preamble else "",
            "{% for message in messages %}",
            "{% if message['role'] == 'system' %}" + system,
            "{% elif message['role'] == 'user' %}" + user,
            "{% elif message['role'] == 'assistant' %}" + turn(template.assistant),
            "{% else %}{{ raise_exception('no role ' + message['role']) }}{% endif %}",
            "{% endfor %}",
            "{% if add_generation_prompt %}" + quoted(opening) + "{% endif %}" if opening else "",
        ]
    )
