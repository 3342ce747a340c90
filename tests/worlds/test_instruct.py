"""The instruction world: answers are right, splits disjoint, rewards bounded, and everything a function of the seed."""

from __future__ import annotations

import math
import random
import unicodedata
from collections import Counter

import pytest

from rlhf_jax.data.schema import Provenance, Turn
from rlhf_jax.worlds.instruct import (
    LICENCE,
    PARTIAL_CREDIT,
    RESERVED,
    SOURCE,
    SPLITS,
    InstructWorld,
    Task,
    _is_reserved,
    gold_reward,
)
from rlhf_jax.worlds.instruct_families import FAMILIES
from rlhf_jax.worlds.lexicon import CATEGORIES, CHINESE, NOUNS

MANY = 1480  # tasks: forty of each pair of family and language


def task_of(answer: str, language="en") -> Task:
    return Task(key="train/0", family="reverse", language=language, prompt="?", answer=answer)


def answer_of(family: str, content: tuple, language="en") -> str:
    return FAMILIES[family].case(content, language).answer


# --- the table of families ------------------------------------------------------------------------------------------


def test_the_table_has_the_promised_families_languages_and_phrasings():
    assert len(FAMILIES) >= 14 + 3
    assert sum(family.held_out for family in FAMILIES.values()) == 3
    assert sum(set(family.languages) == {"en", "zh"} for family in FAMILIES.values()) >= 10
    for name, family in FAMILIES.items():
        assert family.name == name
        for phrasings in family.phrasings.values():
            assert len(phrasings.all) >= 4 and len(phrasings.held_out) >= 1


def test_no_phrasing_asks_for_two_things():
    texts = [text for family in FAMILIES.values() for p in family.phrasings.values() for text in p.all]
    repeated = {text for text, count in Counter(texts).items() if count > 1}
    assert not repeated


def test_every_phrasing_uses_every_argument_of_its_family():
    rng = random.Random(0)
    for family in FAMILIES.values():
        contents = {family.draw(rng) for _ in range(100)}
        for language, phrasings in family.phrasings.items():
            for text in phrasings.all:
                prompts = {content: text.format_map(family.case(content, language).fields) for content in contents}
                assert len(set(prompts.values())) == len(prompts), (family.name, text)


def test_each_word_has_one_translation_and_one_category():
    assert len(set(CHINESE.values())) == len(CHINESE)
    assert min(map(len, CATEGORIES.values())) >= 3  # the odd one out stands beside three of a kind
    assert sum(map(len, CATEGORIES.values())) == len(NOUNS)


def test_each_family_has_hundreds_of_contents_and_reserves_about_a_tenth():
    rng = random.Random(0)
    for family in FAMILIES.values():
        contents = {family.draw(rng) for _ in range(4000)}
        reserved = sum(_is_reserved(family, content) for content in contents)
        assert len(contents) > 200, family.name
        spread = 4 * math.sqrt(len(contents) * (1 / RESERVED) * (1 - 1 / RESERVED))
        assert abs(reserved - len(contents) / RESERVED) < spread, family.name


@pytest.mark.parametrize(
    ("family", "content", "english", "chinese"),
    [
        ("reverse", ("cat", "dog", "car"), "car, dog, cat", "汽车、狗、猫"),
        ("sort_ascending", (10, 9, 2), "2, 9, 10", "2、9、10"),
        ("sort_descending", (10, 9, 20), "20, 10, 9", "20、10、9"),
        ("count", ("cat", "dog", "car"), "3", "3"),
        ("largest", (9, 10, 2), "10", "10"),
        ("smallest", (10, 9, 20), "9", "9"),
        ("add", (7, 5), "12", "12"),
        ("subtract", (7, 5), "2", "2"),
        ("repeat", ("red", "hat", 2), "red hat, red hat", "红色的帽子、红色的帽子"),
        ("delete", ("dog", "cat", "dog", "car"), "cat, car", "猫、汽车"),
        ("replace", ("dog", "cow", "cat", "dog"), "cat, cow", "猫、牛"),
        ("to_chinese", ("cat", "dog"), "猫、狗", "猫、狗"),
        ("to_english", ("cat", "dog"), "cat, dog", "cat, dog"),
        ("compare", (7, "larger", 12), "no", "不对"),
        ("compare", (7, "smaller", 12), "yes", "对"),
        ("sentiment", ("red", "hat", "lovely"), "positive", "正面"),
        ("sentiment", ("red", "hat", "ugly"), "negative", "负面"),
        ("nth", (1, "cat", "dog", "car"), "dog", "狗"),
        ("last", ("cat", "dog", "car"), "car", "汽车"),
        ("pick_category", ("fruit", "cat", "pear", "car"), "pear", "梨"),
        ("odd_one_out", ("car", "cat", "car", "cow"), "car", "汽车"),
        ("contains", ("cat", "dog", "cat"), "yes", "对"),
        ("contains", ("cow", "dog", "cat"), "no", "不对"),
    ],
)
def test_answers_by_hand(family, content, english, chinese):
    assert answer_of(family, content, "en") == english
    assert answer_of(family, content, "zh") == chinese


def test_answers_by_hand_in_english_alone():
    assert answer_of("sort_words", ("dog", "cat", "cow")) == "cat, cow, dog"
    assert answer_of("uppercase", ("cat", "cow")) == "CAT, COW"
    assert answer_of("lowercase", ("cat", "cow")) == "cat, cow"
    assert FAMILIES["lowercase"].case(("cat", "cow"), "en").fields["items"] == "CAT, COW"


# --- splits ---------------------------------------------------------------------------------------------------------


def test_no_prompt_text_is_in_two_splits():
    world = InstructWorld(seed=3)
    prompts = [{task.prompt for task in world.tasks(split, MANY)} for split in SPLITS]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_no_seed_trains_on_a_prompt_that_another_seed_holds_out():
    held_out = {task.prompt for task in InstructWorld(seed=1).tasks("held_out_prompts", MANY)}
    assert held_out.isdisjoint(task.prompt for task in InstructWorld(seed=2).tasks("train", MANY))


def test_held_out_families_and_phrasings_stay_out_of_training():
    world = InstructWorld()
    families = {split: {task.family for task in world.tasks(split, MANY)} for split in SPLITS}
    held_out = {name for name, family in FAMILIES.items() if family.held_out}
    assert families["held_out_families"] == held_out
    for split in ("train", "held_out_prompts", "held_out_phrasings"):
        assert families[split] == set(FAMILIES) - held_out
    openings = ("Yes or no", "Put this list in", "请数一数有几个词")  # held-out phrasings
    assert not any(task.prompt.startswith(openings) for task in world.tasks("train", MANY))
    assert any(task.prompt.startswith(openings) for task in world.tasks("held_out_phrasings", MANY))


@pytest.mark.parametrize("split", SPLITS)
def test_every_block_holds_each_family_and_language_once(split):
    kinds = {(f.name, language) for f in FAMILIES.values() for language in f.languages}
    expected = {kind for kind in kinds if FAMILIES[kind[0]].held_out == (split == "held_out_families")}
    counts = Counter((task.family, task.language) for task in InstructWorld().tasks(split, 10 * len(expected)))
    assert counts == {kind: 10 for kind in expected}


def test_tasks_by_range_by_index_and_by_key_are_equal():
    world = InstructWorld(seed=7)
    for split in SPLITS:
        tasks = world.tasks(split, 60)
        assert world.tasks(split, 20, start=30) == tasks[30:50]
        assert [world.task(task.key) for task in reversed(tasks)] == tasks[::-1]
        assert len({task.key for task in tasks}) == 60


def test_seed_and_index_change_the_task():
    first, second = InstructWorld(seed=0).tasks("train", 200), InstructWorld(seed=1).tasks("train", 200)
    assert sum(a.prompt == b.prompt for a, b in zip(first, second, strict=True)) < 5
    assert len({task.prompt for task in first}) > 190


def test_tasks_stay_the_same_over_versions():
    # A change here changes every data set and every number measured on this world: it needs a line in the change log.
    world = InstructWorld(seed=0)
    tasks = [world.task(key) for key in ("train/16", "train/19", "train/20")]
    assert [(task.prompt, task.answer) for task in tasks] == [
        ("Add 10 and 10.", "20"),
        ("15 - 9 = ?", "6"),
        ("算一算：15-2。", "13"),
    ]


def test_prompts_and_answers_are_short_and_survive_unicode_normalisation():
    # Tokenizers normalise to NFKC: an answer that changed under it could never be matched exactly.
    for split in SPLITS:
        for task in InstructWorld().tasks(split, MANY):
            assert len(task.prompt) < 110 and "{" not in task.prompt
            assert unicodedata.normalize("NFKC", task.answer) == task.answer == task.answer.strip()


def test_chinese_tasks_are_written_in_chinese():
    for task in InstructWorld().tasks("train", MANY):
        assert task.language == "en" or any("\u4e00" <= character <= "\u9fff" for character in task.prompt)
    languages = Counter(task.language for task in InstructWorld().tasks("train", MANY))
    assert languages["zh"] > 0.4 * MANY


@pytest.mark.parametrize(
    "key",
    ["train", "train/", "train/-1", "train/01", "train/x", "train/²", "train/1\n", "train/" + "9" * 5000, "tran/1", ""],
)
def test_a_key_that_names_no_task_is_refused(key):
    with pytest.raises(KeyError, match=r"no task|no split"):
        InstructWorld().task(key)


def test_bad_requests_say_what_would_be_right():
    world = InstructWorld()
    with pytest.raises(KeyError, match="did you mean 'held_out_prompts'"):
        world.task("held_out_prompt/1")
    with pytest.raises(ValueError, match="count is -1"):
        world.tasks("train", -1)
    with pytest.raises(ValueError, match="start is -2"):
        world.tasks("train", 1, start=-2)
    with pytest.raises(ValueError, match=r"flawed is 1\.5"):
        world.demonstrations(1, flawed=1.5)
    with pytest.raises(ValueError, match=r"chatty is -0\.1"):
        world.demonstrations(1, chatty=-0.1)
    assert world.tasks("train", 0) == []


# --- gold reward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("cat, dog, pig", " cat, dog, pig\n", 1.0),
        ("cat, dog, pig", "cat dog pig", 0.6),  # the right words in the wrong dress
        ("cat, dog, pig", "cat, dog", 0.6 * 2 / 3),  # one of three left out
        ("cat, dog, pig", "cat, cow, pig", 0.6 * 2 / 3),  # one of three wrong
        ("cat, dog, pig", "dog, cat, pig", 0.6 * 1 / 3),  # a swap is two edits
        ("cat, dog", "dog, cat", 0.0),
        ("cat, dog", "Sure, here it is: cat, dog", 0.6 * 2 / 6),
        ("CAT, DOG", "cat, dog", 0.0),
        ("yes", "no", 0.0),
        ("yes", "Yes", 0.0),
        ("yes", "yes.", 0.6),
        ("12", "13", 0.0),
        ("12", "1 2", 0.0),
        ("5", "-5", 0.0),
        ("5", "5.5", 0.0),
        ("猫、狗、兔子", "猫、狗、兔子", 1.0),
        ("猫、狗、兔子", "猫、兔子", 0.6 * 2 / 3),
        ("猫、狗", "答案是猫、狗", 0.6 * 2 / 5),  # three characters and two words
        ("对", "不对", 0.0),
        ("cat", "", 0.0),
        ("cat", " ,;! ", 0.0),
    ],
)
def test_gold_by_hand(answer, reply, expected):
    assert gold_reward(task_of(answer), reply) == pytest.approx(expected, abs=1e-12)


def test_every_answer_is_worth_one_and_every_mistake_less():
    for split in SPLITS:
        for task in InstructWorld(seed=5).tasks(split, MANY):
            assert gold_reward(task, task.answer) == 1.0
            assert task.mistakes
            for mistake in task.mistakes:
                assert gold_reward(task, mistake) <= PARTIAL_CREDIT


def test_gold_of_arbitrary_text_stays_in_bounds():
    rng = random.Random(0)
    tasks = InstructWorld().tasks("train", 200)
    pieces = [*NOUNS, *NOUNS.values(), ", ", "、", " ", "\n", "\x00", "\u200b", "e\u0301", "٣", "²", "😀", "\ud800"]
    for task in tasks:
        for _ in range(10):
            noise = "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(8)))
            reply = noise + "".join(rng.choices(pieces, k=rng.randrange(8))) + rng.choice(["", task.answer])
            gold = gold_reward(task, reply)
            assert 0 <= gold <= PARTIAL_CREDIT or (gold == 1 and reply.strip() == task.answer)


def test_gold_by_key_equals_gold_by_task():
    world = InstructWorld(seed=2)
    task = world.tasks("held_out_families", 1, start=4)[0]
    assert world.gold(task.key, task.answer) == 1.0
    assert world.gold(task.key, "") == 0.0


# --- records --------------------------------------------------------------------------------------------------------


def test_prompts_carry_the_key_and_where_they_come_from():
    world = InstructWorld()
    prompt, task = world.prompts("held_out_prompts", 1, start=9)[0], world.task("held_out_prompts/9")
    assert prompt.key == task.key == "held_out_prompts/9"
    assert prompt.turns == (Turn("user", task.prompt),)
    assert prompt.provenance == Provenance(SOURCE, LICENCE, "held_out_prompts/9")
    assert (SOURCE, LICENCE) == ("world:instruct", "Apache-2.0")


@pytest.mark.parametrize("flawed", [0.0, 0.25, 1.0])
def test_the_flawed_share_is_the_one_asked_for(flawed):
    world = InstructWorld()
    golds = [world.gold(d.prompt.key, d.reply) for d in world.demonstrations(MANY, flawed=flawed)]
    wrong = sum(gold < 1 for gold in golds)
    assert abs(wrong - flawed * MANY) <= 4 * math.sqrt(MANY * flawed * (1 - flawed))


def test_every_flaw_costs_reward_in_every_split_and_all_kinds_occur():
    world = InstructWorld(seed=4)
    for split in SPLITS:
        for demonstration in world.demonstrations(1000, flawed=1.0, split=split):
            assert demonstration.reply.strip()
            assert world.gold(demonstration.prompt.key, demonstration.reply) <= PARTIAL_CREDIT
    flawed = [(world.task(d.prompt.key), d.reply) for d in world.demonstrations(1000, flawed=1.0)]
    lists = [(task.answer.split(", "), reply.split(", ")) for task, reply in flawed if ", " in task.answer]
    assert any(reply in task.mistakes for task, reply in flawed)
    assert any(task.answer in reply for task, reply in flawed)
    assert any(len(reply) == len(right) - 1 for right, reply in lists)
    assert any(reply != right and sorted(reply) == sorted(right) for right, reply in lists)


def test_the_chatty_share_of_the_mistakes_holds_the_right_answer():
    def held(chatty):
        world = InstructWorld(families=("count", "largest"))
        replies = world.demonstrations(MANY, flawed=1.0, chatty=chatty)
        return sum(world.task(d.prompt.key).answer in d.reply for d in replies) / MANY

    assert held(1.0) == 1.0
    assert held(0.0) < 0.2  # "a 12" holds the answer 1 as well
    assert 0.5 < held(0.6) < 0.75


def test_a_larger_share_flaws_the_same_demonstrations_and_more():
    world = InstructWorld()
    few, many = world.demonstrations(500, flawed=0.2), world.demonstrations(500, flawed=0.6)
    right = world.demonstrations(500)
    for a, b, c in zip(few, many, right, strict=True):
        assert a.prompt == b.prompt == c.prompt
        assert a in (b, c)
    assert world.demonstrations(100, flawed=0.6, start=300) == many[300:400]


def test_a_tokenizer_trained_on_the_corpus_meets_no_unknown_character():
    world = InstructWorld()
    known = set("".join(world.corpus(100)))
    for split in SPLITS:
        for demonstration in world.demonstrations(MANY, flawed=0.5, split=split):
            assert set(demonstration.prompt.turns[0].text + demonstration.reply) <= known
    text = "\n".join(world.corpus(0))
    assert all(word in text and chinese in text and word.upper() in text for word, chinese in CHINESE.items())


def test_the_corpus_shows_the_training_split_alone():
    world = InstructWorld()
    texts = world.corpus(50)
    assert texts[-50:] == [f"{task.prompt} {task.answer}" for task in world.tasks("train", 50)]
    assert world.corpus(0) == texts[:-50]


def test_a_choice_of_families_is_what_is_asked_and_leaves_the_held_out_families_alone():
    world = InstructWorld(families=("count", "reverse"))
    assert {task.family for task in world.tasks("train", 40)} == {"count", "reverse"}
    assert world.tasks("held_out_families", 12) == InstructWorld().tasks("held_out_families", 12)
    assert world.task("train/7") == world.tasks("train", 8)[7]


def test_an_unknown_or_held_out_family_is_refused():
    with pytest.raises(KeyError, match="did you mean reverse"):
        InstructWorld(families=("revers",))
    with pytest.raises(ValueError, match="held out"):
        InstructWorld(families=("last",))
