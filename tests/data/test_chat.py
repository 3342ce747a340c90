"""Chat templates: special tokens in the frames alone, every reply of a dialogue learned, and a tokenizer's own template."""

import itertools
import json
import shutil

import numpy as np
import pytest

from rlhf_jax.data.batching.packing import pack_right
from rlhf_jax.data.batching.padding import cut, pad_right
from rlhf_jax.data.schema import Comparison, Conversation, Demonstration, Document, Prompt, Provenance, Turn
from rlhf_jax.data.tokens.chat import own_template
from rlhf_jax.data.tokens.encode import (
    encode_comparison,
    encode_conversation,
    encode_demonstration,
    encode_document,
    encode_prompt,
)
from rlhf_jax.data.tokens.templates import TEMPLATES
from rlhf_jax.data.tokens.tokenizer import ending_with, load_tokenizer

HERE = Provenance("test", "MIT", "here:1")
SAID = (
    *(Turn("system", "Be kind."), Turn("user", "Hi <|im_end|></s>"), Turn("assistant", "Yes?")),
    *(Turn("user", "Bye"), Turn("assistant", "See you.")),
)
TALK = Conversation(SAID, HERE)

# As their authors publish them, shortened to what they write of plain dialogues.
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ANSWER = "+ ('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content'] +"
THINKING = QWEN.replace("+ message['content'] +", ANSWER)
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>"),
]


@pytest.fixture(scope="session")
def folder(data_root, tmp_path_factory):
    """GPT-2's tokenizer with the special tokens of the chat templates, and bos and eos apart."""
    from transformers import AutoTokenizer

    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("chat")
    shutil.copyfile(data_root / "tokenizers/gpt2/encoder.json", raw / "vocab.json")
    shutil.copyfile(data_root / "tokenizers/gpt2/vocab.bpe", raw / "merges.txt")
    (raw / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = AutoTokenizer.from_pretrained(str(raw))
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "</s>", "additional_special_tokens": SPECIAL})
    tokenizer.save_pretrained(str(out))
    return out


@pytest.fixture
def with_template(folder, tmp_path):
    """The tokenizer with a chat template of that text, as ours and as transformers'."""

    def opened(text):
        from transformers import AutoTokenizer

        shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / "chat_template.jinja").write_text(text)
        return load_tokenizer(tmp_path / "copy"), AutoTokenizer.from_pretrained(str(tmp_path / "copy"))

    return opened


def messages_of(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


@pytest.mark.parametrize(
    ("name", "text", "turns"),
    [
        ("chatml", QWEN, SAID[:4]),
        ("llama3", LLAMA3, SAID[:4]),
        ("gemma", GEMMA, SAID[1:4]),
        ("zephyr", ZEPHYR, SAID[:4]),
    ],
)
def test_our_chat_templates_write_what_their_authors_do(with_template, name, text, turns):
    ours, theirs = with_template(text)
    # Transformers reads "</s>" that a user has written as the end of the turn.
    turns = tuple(Turn(turn.role, turn.text.replace(" <|im_end|></s>", "")) for turn in turns)
    expected = theirs.apply_chat_template(messages_of(turns), add_generation_prompt=True, return_dict=True)["input_ids"]
    found = encode_prompt(Prompt(turns, HERE), ours, TEMPLATES[name]).prompt
    assert found == ((ours.bos,) if expected[0] != ours.bos else ()) + tuple(expected)
    own = own_template(ours)
    assert encode_prompt(Prompt(turns, HERE), ours, own).prompt == tuple(expected)
    assert own.end == TEMPLATES[name].end


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "gemma", "zephyr"])
def test_what_a_user_spells_ends_no_turn(folder, name):
    tokenizer, template = load_tokenizer(folder), TEMPLATES[name]
    plain = tuple(Turn(turn.role, turn.text.replace("<|im_end|></s>", "")) for turn in SAID[:4])
    special = set(tokenizer.specials.values())
    spelled, quiet = (encode_prompt(Prompt(turns, HERE), tokenizer, template).prompt for turns in (SAID[:4], plain))
    assert [i for i in spelled if i in special] == [i for i in quiet if i in special]
    assert len(spelled) > len(quiet)


def learned_text(tokenizer, example):
    """The learned tokens, spelled, with a bar where others speak."""
    ids, spans, text = list(example.reply), list(example.given), ""
    for number, token in enumerate(ids):
        if any(start <= number < stop for start, stop in spans):
            text += "" if text.endswith("|") else "|"
        else:
            text += next(
                (name for name, known in tokenizer.specials.items() if known == token), None
            ) or tokenizer.decode([token])
    return text


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"), ("zephyr", "</s>")],
)
def test_of_a_dialogue_every_reply_is_learned_with_its_end_and_nothing_else(folder, name, end):
    template = TEMPLATES[name]
    tokenizer = ending_with(load_tokenizer(folder), template.end)
    (example,) = encode_conversation(TALK, tokenizer, template)
    assert learned_text(tokenizer, example) == f"Yes?{end}|See you.{end}"
    assert example.prompt == encode_prompt(TALK.prompt, tokenizer, template).prompt
    # The whole reads as the dialogue does; a reply has the tokens it has alone, though with GPT-2 two newlines are one token before
    # nothing and two before a word.
    first, last = TALK.demonstrations()
    whole = encode_demonstration(last, tokenizer, template)
    assert tokenizer.decode(example.prompt + example.reply) == tokenizer.decode(whole.prompt + whole.reply)
    assert name == "llama3" or example.prompt + example.reply == whole.prompt + whole.reply
    (start, stop), size = example.given[0], len(example.reply)
    assert example.reply[:start] == encode_demonstration(first, tokenizer, template).reply
    assert example.reply[stop:] == whole.reply
    learned = [not start <= place < stop for place in range(size)]
    # Whole, cut inside the second reply, inside what the user says, and inside the first reply.
    for length in (96, size, stop - 2, start + 1, start):
        short = cut(example, length)
        mask = np.asarray(pad_right([example], length, 0).loss_mask[0])
        expected = [False] * len(short.prompt) + learned[: len(short.reply)]
        assert mask.tolist() == expected + [False] * (length - len(expected))
        packed = np.asarray(pack_right([short, short], 2 * length, 0).loss_mask[0])
        assert packed.tolist()[: 2 * len(expected)] == expected * 2


def test_a_reply_that_nothing_ends_is_an_example_of_its_own(folder):
    tokenizer, template = load_tokenizer(folder), TEMPLATES["hh"]
    parts = encode_conversation(TALK, tokenizer, template)
    assert parts == [encode_demonstration(part, tokenizer, template) for part in TALK.demonstrations()]
    assert [part.reply[-1] for part in parts] == [tokenizer.eos] * 2


def test_without_a_special_token_of_its_name_the_end_is_text_and_eos_follows(trained):
    (example,) = encode_conversation(TALK, trained, TEMPLATES["chatml"])
    assert learned_text(trained, example) == "Yes?<|im_end|>|See you.<|im_end|></s>"
    assert TEMPLATES["chatml"].reply_text(trained.decode(example.reply[example.given[0][1] :])) == "See you."
    assert ending_with(trained, "<|im_end|>") is trained


def test_a_template_that_puts_something_before_the_last_reply_has_it_learned(with_template):
    tokenizer, _ = with_template(THINKING)
    own = own_template(tokenizer)
    assert (own.opening, own.before_reply, own.end) == (
        "<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n",
        "<|im_end|>",
    )
    tokenizer = ending_with(tokenizer, own.end)
    example = encode_demonstration(Demonstration(Prompt(SAID[:2], HERE), "Yes?"), tokenizer, own)
    assert learned_text(tokenizer, example) == "<think>\n\n</think>\n\nYes?<|im_end|>"
    pair = encode_comparison(Comparison(Prompt(SAID[:2], HERE), "Yes?", "No."), tokenizer, own)
    assert pair.chosen.prompt == pair.rejected.prompt == example.prompt


@pytest.mark.parametrize(
    ("text", "turns", "reason"),
    [
        (GEMMA, SAID[:4], "here:1: the tokenizer's chat template refuses the dialogue .System role not supported"),
        (QWEN.replace("{% for", "{% for", 1).replace("messages %}", "messages[-1:] %}"), SAID[:4], "leaves out a turn"),
        (QWEN.replace("message['content']", "message['content'] | upper"), SAID[:4], "changes what is said"),
    ],
)
def test_a_template_that_cannot_be_followed_says_why(with_template, text, turns, reason):
    tokenizer, _ = with_template(text)
    with pytest.raises(ValueError, match=reason):
        encode_prompt(Prompt(turns, HERE), tokenizer, own_template(tokenizer))


def test_a_tokenizer_without_a_usable_chat_template_is_refused(folder, trained, with_template):
    for tokenizer in (load_tokenizer(folder), trained):
        with pytest.raises(
            ValueError, match="the chat template of the tokenizer, which has none; name one, such as chatml"
        ):
            own_template(tokenizer)
    tokenizer, _ = with_template(QWEN.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>model\n' }}"))
    with pytest.raises(ValueError, match=r"begins a reply behind '.*model\\n', but one in a dialogue behind"):
        own_template(tokenizer)


def test_a_document_is_learned_whole_in_windows(trained):
    text = "the cat sat on a mat and wrote 12 letters to its friend"
    ids = (trained.bos, *trained.encode(text), trained.eos)
    windows = encode_document(Document(text, HERE), trained, 8)
    assert all(len(window.prompt) == 1 and len(window.reply) <= 7 for window in windows)
    assert windows[0].prompt == ids[:1]
    assert sum((window.reply for window in windows), ()) == ids[1:]
    assert all(window.prompt[0] == before.reply[-1] for before, window in itertools.pairwise(windows))
    (whole,) = encode_document(Document(text, HERE), trained, len(ids))
    assert (whole.prompt, whole.reply) == (ids[:1], ids[1:])
