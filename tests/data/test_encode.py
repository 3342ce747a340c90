import re
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.batching.packing import pack, pack_right
from rlhf_jax.data.batching.padding import Cut, count_cut, cut, cut_pair, pad_left, pad_right
from rlhf_jax.data.schema import Comparison, Demonstration, Labelled, Prompt, Provenance, Turn, user_prompt
from rlhf_jax.data.tokens.encode import (
    Encoded,
    EncodedPair,
    encode_comparison,
    encode_demonstration,
    encode_labelled,
    encode_prompt,
    longest_prefix,
)
from rlhf_jax.data.tokens.templates import TEMPLATES
from rlhf_jax.data.tokens.tokenizer import load_tokenizer
from rlhf_jax.masking import positions_of

HERE = Provenance("test", "MIT", "here:1")
PROMPT = user_prompt("Once upon a time, there was a cat named", HERE)
PUBLISHED = {
    "mistral": "tokenizers/mistral-v1/tokenizer.model",
    "stories": "checkpoints/stories260K/tok512.model",
    "t5": "tokenizers/t5/spiece.model",
}


class Letters:
    """One token per character; pad is eos, and bos is eos too, as in GPT-2."""

    vocab_size = 300
    bos: int | None = 299
    eos = 299
    specials: ClassVar[dict[str, int]] = {}
    pad = 299

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i != 299)


class LettersWithoutBos(Letters):
    bos = None


@pytest.fixture(params=["trained", *PUBLISHED])
def tokenizer(request):
    if request.param == "trained":
        return request.getfixturevalue("trained")
    return load_tokenizer(request.getfixturevalue("data_root") / PUBLISHED[request.param])


def spelled(tokenizer, text):
    """The tokens of a text in which </s> and <s> are the tokens of that name, where there are such."""
    ids = []
    for part in re.split("(</s>|<s>)", text):
        known = tokenizer.specials.get(part)
        ids += tokenizer.encode(part) if known is None and part else [known] if part else []
    return ids


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("reply", ["Tom. He ate 12 fish.", "s", "\nnew line", " two  blanks"])
def test_no_token_spans_the_boundary_and_bos_and_eos_stand_once(tokenizer, name, reply):
    template = TEMPLATES[name]
    encoded = encode_demonstration(Demonstration(PROMPT, reply), tokenizer, template)
    asked = encode_prompt(PROMPT, tokenizer, template)
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    # The prompt of training is the prompt of sampling, id for id, and the reply is what its text alone gives.
    assert encoded.prompt == asked.prompt == (*bos, *spelled(tokenizer, template.prompt(PROMPT)))
    written = template.reply(reply)
    ends = template.end == "</s>"  # what ends a reply anyway
    assert encoded.reply == (*spelled(tokenizer, written.removesuffix("</s>") if ends else written), tokenizer.eos)
    ids = encoded.prompt + encoded.reply
    assert ids.count(tokenizer.eos) == 1 + template.prompt(PROMPT).count("</s>")
    assert tokenizer.bos is None or ids.count(tokenizer.bos) == 1
    assert asked.reply == ()


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"llama2", "zephyr"}))  # whose </s> has no text
def test_prompt_and_reply_apart_read_as_the_one_text(trained, name):
    template = TEMPLATES[name]
    encoded = encode_demonstration(Demonstration(PROMPT, " Tom.\n  12"), trained, template)
    assert trained.decode(encoded.prompt + encoded.reply) == template.prompt(PROMPT) + template.reply(" Tom.\n  12")
    assert template.reply_text(trained.decode(encoded.reply)) == " Tom.\n  12"


@pytest.mark.parametrize("name", ["plain", "hh"])
@pytest.mark.parametrize("kind", ["trained", "stories", "t5"])
def test_a_reply_that_starts_with_a_blank_has_the_tokens_it_has_inside_the_whole_text(name, kind, request, data_root):
    # Not so with Mistral's tokenizer: it puts a blank of its own in front of whatever it is given.
    tokenizer = request.getfixturevalue(kind) if kind == "trained" else load_tokenizer(data_root / PUBLISHED[kind])
    template = TEMPLATES[name]
    encoded = encode_demonstration(Demonstration(PROMPT, "s"), tokenizer, template)
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    whole = tokenizer.encode(template.prompt(PROMPT) + template.reply("s"))
    assert [*encoded.prompt, *encoded.reply] == [*bos, *whole, tokenizer.eos]


def test_a_query_too_long_still_ends_where_the_reply_starts():
    # Of 600 letters on four lines.
    prompt = user_prompt("\n".join(letter * 143 for letter in "abcd") + "....", HERE)
    encoded = encode_prompt(prompt, Letters(), TEMPLATES["hh"])
    assert len(encoded.prompt) == 601
    short = cut(encoded, 512)
    assert len(short.prompt) == 512 and short.prompt[0] == Letters.bos
    assert Letters().decode(short.prompt).endswith("d....\n\nAssistant:")


def test_both_replies_of_a_pair_follow_the_same_prompt():
    pair = encode_comparison(Comparison(PROMPT, "yes", "no", margin=2.0, weight=0.5), Letters(), TEMPLATES["hh"])
    assert pair.chosen.prompt == pair.rejected.prompt
    assert Letters().decode(pair.chosen.reply) == " yes"
    assert Letters().decode(pair.rejected.reply) == " no"
    assert (pair.margin, pair.weight) == (2.0, 0.5)


def test_a_labelled_text_is_all_reply_and_has_no_eos_so_that_cut_texts_can_be_scored_too():
    encoded = encode_labelled(Labelled("ab", 1, HERE), Letters())
    assert encoded.text == Encoded((299,), (97, 98), head=1)
    assert encoded.label == 1
    assert encode_labelled(Labelled("ab", 0, HERE), LettersWithoutBos()).text == Encoded((), (97, 98))


def test_a_prompt_without_any_token_is_refused_since_nothing_could_follow_it():
    empty = user_prompt("", HERE)
    assert encode_prompt(empty, Letters(), TEMPLATES["none"]).prompt == (299,)
    with pytest.raises(ValueError, match="prompt from 'here:1' has no tokens"):
        encode_prompt(empty, LettersWithoutBos(), TEMPLATES["none"])


def test_right_padding_by_hand_with_a_pad_that_is_eos_bos_and_a_token_of_the_reply():
    batch = pad_right([Encoded((9, 5), (9, 6, 9), head=1), Encoded((9, 5, 7), (9,), head=1)], 6, pad=9)
    np.testing.assert_array_equal(batch.tokens, [[9, 5, 9, 6, 9, 9], [9, 5, 7, 9, 9, 9]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask.astype(int), [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]])
    assert {batch.tokens.dtype, batch.segments.dtype, batch.positions.dtype} == {np.dtype(np.int32)}
    assert batch.loss_mask.dtype == np.bool_


def test_left_padding_by_hand_leaves_the_reply_out_and_nothing_to_learn():
    batch = pad_left([Encoded((9, 5), (6, 9), head=1), Encoded((9, 5, 7, 8), head=1)], 5, pad=9)
    np.testing.assert_array_equal(batch.tokens, [[9, 9, 9, 9, 5], [9, 9, 5, 7, 8]])
    np.testing.assert_array_equal(batch.segments, [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.positions, [[0, 0, 0, 0, 1], [0, 0, 1, 2, 3]])
    assert not batch.loss_mask.any()


def test_the_side_of_the_padding_changes_neither_real_tokens_nor_their_positions():
    prompts = [Encoded(tuple(range(1, 2 + n)), head=1) for n in range(6)]
    left, right = pad_left(prompts, 8, pad=0), pad_right(prompts, 8, pad=0)
    for row, prompt in enumerate(prompts):
        for batch in (left, right):
            real = batch.segments[row] == 1
            assert tuple(batch.tokens[row][real]) == prompt.prompt
            np.testing.assert_array_equal(batch.positions[row][real], np.arange(len(prompt.prompt)))
    for batch in (left, right):
        np.testing.assert_array_equal(batch.positions, positions_of(jnp.asarray(batch.segments) == 1))


@pytest.mark.parametrize(
    ("length", "prompt", "reply"),
    [
        (8, (1, 2, 3, 4), (5, 6, 7)),
        (7, (1, 2, 3, 4), (5, 6, 7)),
        (6, (1, 3, 4), (5, 6, 7)),
        (5, (1, 4), (5, 6, 7)),
        (4, (1,), (5, 6, 7)),
        (3, (1,), (5, 6)),
        (2, (1,), (5,)),
    ],
)
def test_too_long_loses_the_start_of_the_prompt_after_bos_then_the_end_of_the_reply(length, prompt, reply):
    assert cut(Encoded((1, 2, 3, 4), (5, 6, 7), head=1), length) == Encoded(prompt, reply, head=1)


def test_without_bos_the_last_token_of_the_prompt_stays():
    assert cut(Encoded((2, 3, 4), (5, 6, 7)), 3) == Encoded((4,), (5, 6))
    assert cut(Encoded((), (5, 6, 7)), 2) == Encoded((), (5, 6))


def test_a_prompt_alone_is_cut_to_its_end_on_either_side():
    long = [Encoded((1, 2, 3, 4, 5), head=1)]
    np.testing.assert_array_equal(pad_left(long, 3, pad=0).tokens, [[1, 4, 5]])
    np.testing.assert_array_equal(pad_right(long, 3, pad=0).tokens, [[1, 4, 5]])
    # The reply takes no room from a prompt that is to be sampled from.
    with_reply = [Encoded((1, 2, 3), (4, 5, 6), head=1)]
    np.testing.assert_array_equal(pad_left(with_reply, 3, pad=0).tokens, [[1, 2, 3]])


def test_both_sides_of_a_pair_lose_the_same_of_their_prompt():
    pair = EncodedPair(Encoded((1, 2, 3, 4), (5, 6, 7), head=1), Encoded((1, 2, 3, 4), (8,), head=1), margin=1.0)
    short = cut_pair(pair, 5)
    assert short == EncodedPair(Encoded((1, 4), (5, 6, 7), head=1), Encoded((1, 4), (8,), head=1), margin=1.0)


def test_what_was_cut_is_counted():
    examples = [Encoded((1, 2), (3,), 1), Encoded((1, 2, 3), (4, 5), 1), Encoded((1, 2), (3, 4, 5, 6), 1)]
    assert count_cut(examples, 4) == Cut(examples=3, prompts=2, replies=1)
    assert count_cut(examples, 6) == Cut(examples=3, prompts=0, replies=0)
    assert count_cut([EncodedPair(examples[0], examples[2])], 4) == Cut(examples=1, prompts=1, replies=1)


def test_no_examples_and_no_room_are_refused():
    for padded in (pad_left, pad_right):
        with pytest.raises(ValueError, match="no examples"):
            padded([], 4, pad=0)
        with pytest.raises(ValueError, match="length is 1"):
            padded([Encoded((1,), (2,))], 1, pad=0)


def test_packed_rows_hold_every_example_whole_with_its_own_segment_and_positions():
    examples = [Encoded((1, 2, 3), (4, 5)), Encoded((6,), (7,)), Encoded((8, 9), (10, 11, 12)), Encoded((13,), (14,))]
    packed = pack_right(examples, 8, 0)
    # First fit: the first row takes 5 + 2, and of the last example's 2 tokens none; the second row 5 + 2.
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0], [8, 9, 10, 11, 12, 13, 14, 0]]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 0]] * 2
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0]] * 2
    assert packed.loss_mask.tolist()[0] == [False, False, False, True, True, False, True, False]
    assert packed.loss_mask.tolist()[1] == [False, False, True, True, True, False, True, False]


@pytest.mark.parametrize("how", ["first_fit", "best_fit"])
def test_packing_loses_no_example_and_never_overfills_a_row(how):
    rng = np.random.default_rng(0)
    examples = [Encoded(tuple(range(rng.integers(1, 9))), tuple(range(rng.integers(1, 30)))) for _ in range(200)]
    rows = pack([e.size for e in examples], 24, how)
    assert sorted(place for row in rows for place in row) == list(range(200))
    sizes = [min(len(e.prompt) + len(e.reply), 24) for e in examples]
    assert max(sum(sizes[place] for place in row) for row in rows) <= 24


def post(text: str) -> Prompt:
    """A post of a forum, as the adapter of TL;DR makes it."""
    return Prompt((Turn("system", "SUBREDDIT: r/pets\n\nTITLE: My cat"), Turn("user", text)), HERE)


QUERY = "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: {}\n\nTL;DR:"
LINES = ["a" * 149, "b" * 149, "c" * 149, "d" * 102]
AROUND = len(QUERY) - 2


def test_a_query_of_600_tokens_loses_its_last_lines_and_keeps_its_form():
    # PAPERS 7.1, row 2.2: at most 512 tokens, cut at the last newline, "TL;DR:" at the very end without a blank.
    text = "\n".join(LINES)
    assert AROUND + len(text) == 600
    encoded = encode_prompt(post(text), LettersWithoutBos(), TEMPLATES["tldr"], 512)
    assert Letters().decode(encoded.prompt) == QUERY.format("\n".join(LINES[:3]))
    assert len(encoded.prompt) <= 512
    assert encoded.shortened


@pytest.mark.parametrize(
    ("text", "room", "kept"),
    [
        ("It fits.", 8, "It fits."),
        ("One.\nTwo. Three", 15, "One.\nTwo. Three"),
        ("One.\nTwo. Three", 14, "One."),
        ("One.\n\nTwo. Three", 14, "One."),  # the blank line goes with what it leads to
        ("One. Two! Three", 12, "One. Two!"),
        ("\nOne. Two", 7, "\nOne."),  # nothing stands before the only newline
        ("一。二！三", 4, "一。二！"),
        ("Onetwothree", 6, "Onetwo"),
        ("One two", 0, ""),
    ],
)
def test_a_post_ends_at_a_line_else_at_a_sentence_else_anywhere(text, room, kept):
    encoded = encode_prompt(post(text), Letters(), TEMPLATES["tldr"], 1 + AROUND + room)
    assert Letters().decode(encoded.prompt) == QUERY.format(kept)
    assert encoded.prompt[0] == Letters.bos
    assert encoded.shortened == (kept != text)


def test_what_no_cut_of_the_post_makes_short_enough_loses_its_start_as_any_prompt_does():
    encoded = encode_prompt(post("One."), Letters(), TEMPLATES["tldr"], AROUND)
    assert encoded == encode_prompt(post("One."), Letters(), TEMPLATES["tldr"])
    assert longest_prefix("One.", lambda place: False) is None
    assert Letters().decode(pad_left([encoded], 8, 0).tokens[0].tolist()) == "\nTL;DR:"


def test_posts_that_lost_their_end_are_counted():
    examples = [
        encode_prompt(post(text), Letters(), TEMPLATES["tldr"], AROUND + 8) for text in ("short", "too long for it")
    ]
    assert count_cut(examples, 100) == Cut(2, 1, 0)


def test_other_templates_leave_prompts_whole_for_their_start_to_go():
    whole = encode_prompt(PROMPT, Letters(), TEMPLATES["plain"])
    assert encode_prompt(PROMPT, Letters(), TEMPLATES["plain"], 5) == whole


def test_a_post_is_encoded_a_few_times_only_however_long_it_is():
    class Counting(Letters):
        calls = 0

        def encode(self, text):
            Counting.calls += 1
            return super().encode(text)

    encode_prompt(post("x" * 20_000), Counting(), TEMPLATES["tldr"], 512)
    assert Counting.calls < 40


def test_published_tokenizers_fit_posts_of_any_text_into_512(data_root):
    tokenizer = load_tokenizer(data_root / PUBLISHED["mistral"])
    for text in ("word " * 900, "我的猫。" * 300, ("line\n" * 200 + "end. ") * 3, "🙂" * 400):
        ids = encode_prompt(post(text), tokenizer, TEMPLATES["tldr"], 512).prompt
        assert 300 < len(ids) <= 512
        assert tokenizer.decode(ids).endswith("\n\nTL;DR:")
