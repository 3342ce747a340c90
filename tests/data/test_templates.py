import pytest

from rlhf_jax.data.schema import Prompt, Provenance, Turn, user_prompt
from rlhf_jax.data.tokens.templates import TEMPLATES, Frames, get_template

HERE = Provenance("test", "MIT", "here:1")
ONE = user_prompt("Say {hi}.", HERE)
TURNS = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Yes?"), Turn("user", "Bye"))
DIALOGUE = Prompt(TURNS, HERE)

PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "Say {hi}."),
        ("plain", "Say {hi}.\n"),
        ("alpaca", PREAMBLE + "### Instruction:\nSay {hi}.\n\n### Response:\n"),
        ("hh", "\n\nHuman: Say {hi}.\n\nAssistant:"),
        ("tldr", "POST: Say {hi}.\n\nTL;DR:"),
    ],
)
def test_one_turn_is_written_letter_for_letter(name, expected):
    assert TEMPLATES[name].prompt(ONE) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "Be kind.HiYes?Bye"),
        ("plain", "Be kind.\nHi\n Yes?\nBye\n"),
        (
            "alpaca",
            "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nYes?\n\n### Instruction:\nBye\n\n### Response:\n",
        ),
        ("hh", "Be kind.\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:"),
        ("tldr", "Be kind.\n\nPOST: Hi\n\nTL;DR: Yes?\n\nPOST: Bye\n\nTL;DR:"),
    ],
)
def test_a_dialogue_is_written_letter_for_letter(name, expected):
    assert TEMPLATES[name].prompt(DIALOGUE) == expected


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"alpaca"}))
def test_a_reply_is_written_as_the_assistant_turn_it_becomes(name):
    # Otherwise the second turn of a chat would look unlike anything that was trained on. Alpaca puts a blank line
    # after a turn.
    template = TEMPLATES[name]
    asked = Prompt((Turn("user", "Hi"),), HERE)
    answered = Prompt((*asked.turns, Turn("assistant", "Yes?"), Turn("user", "Bye")), HERE)
    assert template.prompt(answered).startswith(template.prompt(asked) + template.reply("Yes?"))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_text_of_a_reply_is_recovered_from_what_was_written(name):
    template = TEMPLATES[name]
    for text in ("Yes.", " two blanks ", ""):
        assert template.reply_text(template.reply(text)) == text


def test_names_and_forms_that_do_not_exist_are_refused():
    with pytest.raises(KeyError, match="did you mean alpaca"):
        get_template("alpacca")
    assert get_template("hh") is TEMPLATES["hh"]
    with pytest.raises(ValueError, match=r"template field user is 'Q'; expected one \{\}"):
        Frames(user="Q", assistant="{}")
    with pytest.raises(ValueError, match="no turns"):
        TEMPLATES["plain"].prompt(Prompt((), HERE))
