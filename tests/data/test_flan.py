"""FLAN's formats: wordings, worked examples, tasks turned round."""

from collections import Counter

import pytest

from rlhf_jax.config import Flan
from rlhf_jax.data.flan import WORDINGS, in_formats, kind_of
from rlhf_jax.data.schema import Demonstration, Document, Prompt, Provenance, Turn, user_prompt

ZERO = Flan(few_shot=0.0, inverted=0.0)


def records(count=200, source="questions:x.jsonl"):
    where = Provenance(source, "MIT")
    return [Demonstration(user_prompt(f"What is {n} and 1?", where), f"It is {n + 1}.") for n in range(count)]


def asked(record):
    return record.prompt.turns[0].text


@pytest.mark.parametrize("kind", WORDINGS)
def test_there_are_ten_wordings_of_each_kind_and_each_takes_one_text(kind):
    wordings = WORDINGS[kind]
    assert len(set(wordings.asked)) == 10
    assert all(form.count("{}") == 1 for form in (*wordings.asked, *wordings.inverted))


@pytest.mark.parametrize("count", [1, 4, 10])
def test_a_record_is_put_in_one_of_as_many_wordings_as_are_used(count):
    given = records()
    found = in_formats(given, Flan(wordings=count, few_shot=0.0, inverted=0.0), seed=0)
    used = Counter(asked(new).replace(asked(old), "{}") for old, new in zip(given, found, strict=True))
    assert set(used) == set(WORDINGS["question"].asked[:count])
    assert [new.reply for new in found] == [old.reply for old in given]
    assert [new.prompt.key for new in found] == [old.prompt.key for old in given], "so that the split stays"


def test_a_share_is_turned_round():
    given = records(400)
    found = in_formats(given, Flan(few_shot=0.0, inverted=0.25), seed=0)
    turned = [(old, new) for old, new in zip(given, found, strict=True) if new.reply == asked(old)]
    assert 70 < len(turned) < 130  # of 400, at a quarter: standard deviation 9
    assert all(old.reply in asked(new) and asked(old) not in asked(new) for old, new in turned)


def test_worked_examples_are_others_of_the_list_in_the_wording_of_the_question():
    given = records(100)
    found = in_formats(given, Flan(few_shot=1.0, shots=3, inverted=0.0, wordings=1), seed=0)
    for old, new in zip(given, found, strict=True):
        *examples, question = asked(new).split("\n\n")
        assert question == asked(old)
        assert len(set(examples)) == 3
        for example in examples:
            shown = next(one for one in given if asked(one) == example.split("\n")[0])
            assert shown is not old and example == f"{asked(shown)}\n{shown.reply}"


def test_the_format_of_a_record_depends_on_it_and_the_seed_alone():
    given = records(50)
    found = in_formats(given, ZERO, seed=0)
    assert in_formats(given[::-1], ZERO, seed=0) == found[::-1]
    assert in_formats(given[:7], ZERO, seed=0) == found[:7]
    assert in_formats(given, ZERO, seed=1) != found


def test_chains_of_thought_have_wordings_of_their_own():
    assert kind_of("cot:x.tsv") == "reasoning"
    assert kind_of("gsm8k:x.jsonl") == "question"
    assert kind_of("alpaca:x.json") == "instruction"
    found = in_formats(records(60, "cot:x.tsv"), ZERO, seed=0)
    assert any("step by step" in asked(record) for record in found)


def test_dialogues_and_documents_stay_as_they_are():
    where = Provenance("s", "MIT")
    others = [Document("T", where), Demonstration(Prompt((Turn("system", "S"), Turn("user", "Q")), where), "A")]
    assert in_formats(others, Flan(), seed=0) == others


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="wordings=11 must lie between 1 and 10"):
        Flan(wordings=11)
    with pytest.raises(ValueError, match="shots"):
        Flan(shots=0)
