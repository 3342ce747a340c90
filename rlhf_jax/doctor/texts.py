"""What must hold between texts and tokens, for any tokenizer and every template."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlhf_jax.data.batching.padding import pad_right
from rlhf_jax.data.schema import Demonstration, Prompt, Provenance, Turn
from rlhf_jax.data.tokens.encode import Encoded, encode_demonstration, encode_prompt
from rlhf_jax.data.tokens.templates import TEMPLATES
from rlhf_jax.data.tokens.tokenizer import Tokenizer, train_sentencepiece
from rlhf_jax.doctor.report import Check, equal, reported

TEXTS = (
    ("Name a colour.", "Blue."),
    ("Which comes first: black, hat?", "black"),
    ("写一首诗。", "床前明月光，\n疑是地上霜。"),
    ("  two  blanks ", " 1+1 = 2 "),
    ("def f(x):\n\treturn x", "🙂 ok"),
)
# Spelled by a user they are text, not the end of a prompt.
SPELLED = ("</s>", "<s>", "<|endoftext|>", "<|im_end|>", "<eos>", "<bos>", "<pad>", "[SEP]", "[CLS]", "[PAD]")


def demonstration(prompt: str, reply: str) -> Demonstration:
    """A dialogue of one turn and its reply."""
    return Demonstration(Prompt((Turn("user", prompt),), Provenance("doctor", "none")), reply)


def of_tokenizer(name: str, tokenizer: Tokenizer) -> Iterator[Check]:
    """The checks of one tokenizer."""
    special = {token for token in (tokenizer.bos, tokenizer.eos) if token is not None}
    count = wrong = apart = merged = 0
    for template in TEMPLATES.values():
        for prompt, reply in TEXTS:
            example = demonstration(prompt, reply)
            encoded = encode_demonstration(example, tokenizer, template)
            ids = (*encoded.prompt, *encoded.reply)
            inside = ids[1:-1] if tokenizer.bos is not None else ids[:-1]
            count += 1
            begins = tokenizer.bos is None or ids[0] == tokenizer.bos
            # A template may spell them itself, such as </s> behind the turn of a user.
            known = (
                {piece for piece, number in tokenizer.specials.items() if number in special} if template.special else ()
            )
            frames = [piece.text for piece in template.pieces(example.prompt.turns) if piece.kind == "frame"]
            own = sum(frame.count(piece) for frame in frames for piece in known)
            wrong += not (begins and ids[-1] == tokenizer.eos and sum(i in special for i in inside) == own)
            apart += encoded.prompt != encode_prompt(example.prompt, tokenizer, template).prompt
            head = len(encoded.prompt) - len(encode_prompt(example.prompt, tokenizer, template).prompt[encoded.head :])
            if not template.special:
                joined = tokenizer.encode(template.prompt(example.prompt) + template.reply(reply))
                merged += tuple(joined) != ids[head:-1]
    yield equal(f"{name}: of {count} dialogues, those without one bos and one eos at the ends", wrong, 0)
    yield equal(f"{name}: of {count} prompts, those whose tokens depend on the reply", apart, 0)
    yield reported(
        f"{name}: of {count} dialogues, those with other tokens if encoded in one piece", merged, "kept apart"
    )
    # Not pad, which may be the id of unknown words: masks come from lengths.
    spelled = sum(bool(special.intersection(tokenizer.encode(f"a {text} b"))) for text in SPELLED)
    yield equal(f"{name}: of {len(SPELLED)} special tokens, those that a text can spell", spelled, 0)
    beyond = max(max(tokenizer.encode(text), default=0) for pair in TEXTS for text in pair) >= tokenizer.vocab_size
    yield equal(f"{name}: ids beyond its vocabulary of {tokenizer.vocab_size}", int(beyond), 0)
    yield from eos_is_learned(name, tokenizer, pad=tokenizer.pad)


def eos_is_learned(name: str, tokenizer: Tokenizer, *, pad: int) -> Iterator[Check]:
    """Whether the eos of a reply is among the tokens to learn, and padding is not, when the pad id is this one."""
    encoded = [encode_demonstration(demonstration(*text), tokenizer, TEMPLATES["plain"]) for text in TEXTS]
    batch = pad_right(encoded, max(map(len_of, encoded)) + 2, pad)
    tokens, mask = np.asarray(batch.tokens), np.asarray(batch.loss_mask)
    last = [len_of(example) - 1 for example in encoded]
    rows = np.arange(len(encoded))
    learned = (
        mask[rows, last] & (tokens[rows, last] == tokenizer.eos) & (mask.sum(axis=1) == [len(e.reply) for e in encoded])
    )
    how = "pad = eos" if pad == tokenizer.eos else "pad apart from eos"
    yield equal(f"{name}, {how}: replies whose eos is not learned or padding is", int(np.sum(~learned)), 0)


def len_of(example: Encoded) -> int:
    """Tokens of prompt and reply."""
    return len(example.prompt) + len(example.reply)


def of_ours() -> Iterator[Check]:
    """A sentencepiece tokenizer trained here."""
    corpus = [text for pair in TEXTS for text in pair] * 4
    tokenizer = train_sentencepiece(corpus, 340)
    yield from of_tokenizer("sentencepiece", tokenizer)
    yield from eos_is_learned("sentencepiece", tokenizer, pad=tokenizer.eos)


EXAMINATIONS = (of_ours,)
