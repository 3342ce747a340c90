import dataclasses

import numpy as np
import pytest

from rlhf_jax.data.clean import CleanOptions, clean
from rlhf_jax.data.clean.near import bands
from rlhf_jax.data.clean.shingles import Tokens, is_unspaced, jaccard, runs, shingles
from rlhf_jax.data.schema import (
    Comparison,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Provenance,
    Ranking,
    Rated,
    user_prompt,
)

HERE = Provenance("test", "MIT")
WORDS = (
    "the old harbour wall was built of grey stone by men from three villages who wanted their boats to lie safely "
    "behind it when the winter storms came in from the north and broke over the reef with a noise like thunder"
)
CHINESE = "老港口的石墙是由三个村子的人用灰色的石头建成的，他们希望冬天的暴风雨从北方袭来时，船只能够安全地停泊在墙的后面，不被海浪打碎。"


def asked(prompt, reply):
    return Demonstration(user_prompt(prompt, HERE), reply)


def at(number):
    return dataclasses.replace(HERE, place=f"file:{number}")


def kept(records, rule="exact_duplicates", **options):
    return list(clean(records, [rule], CleanOptions(**options)).records)


def test_the_same_texts_go_and_the_same_prompt_with_another_reply_stays():
    records = [
        asked("Hi", "Hello there"),
        asked("Hi", "Good day"),
        asked("hi ", "hello\n there"),
        asked("Hi", "Good day"),
    ]
    done = clean(records, ["exact_duplicates"])
    assert list(done.records) == records[:2]
    assert done.report.of("exact_duplicates").notes == (("the prompt of an earlier record, with another reply", 1),)


def test_the_report_names_the_record_that_stays():
    records = [Document("　你好", at(1)), Document("x", at(2)), Document("你好 ", at(3))]
    (example,) = clean(records, ["exact_duplicates"]).report.of("exact_duplicates").examples
    assert (example.place, example.number, example.kept) == ("file:3", 2, "file:1 (record 0)")


def test_the_number_of_the_kept_record_counts_those_that_earlier_rules_dropped():
    records = [Document(" ", at(1)), Document("a b c", at(2)), Document("a  b c", at(3))]
    report = clean(records, ["empty", "exact_duplicates"]).report
    (example,) = report.of("exact_duplicates").examples
    assert (example.number, example.kept) == (2, "file:2 (record 1)")


def test_what_is_said_of_the_texts_makes_them_differ():
    prompt = user_prompt("Hi", HERE)
    crowd = user_prompt("Hi", dataclasses.replace(HERE, annotator="second"))
    records = [
        Labelled("fine film", 1, HERE),
        Labelled("fine film", 0, HERE),
        Rated(prompt, "a", 1.0),
        Rated(prompt, "a", 0.5),
        LabelledReply(prompt, "a", True),
        LabelledReply(prompt, "a", False),
        Demonstration(prompt, "a"),
        Ranking(prompt, ("a", "b"), (0, 1)),
        Ranking(prompt, ("a", "b"), (1, 0)),
        Comparison(prompt, "a", "b"),
        Comparison(crowd, "a", "b"),
        Comparison(prompt, "b", "a"),
        Comparison(prompt, "a", "c"),
    ]
    for rule in ("exact_duplicates", "near_duplicates"):
        assert kept(records, rule) == records
        assert kept(records + records, rule) == records
    notes = dict(clean(records, ["exact_duplicates"]).report.of("exact_duplicates").notes)
    assert notes["the same texts as an earlier record, judged otherwise or by another"] == 5


def test_replies_that_cleaning_made_equal_compare_nothing():
    prompt = user_prompt("Hi", HERE)
    records = [
        Comparison(prompt, "a b", "a\u00a0b"),
        Ranking(prompt, ("a\u200b", "a"), (0, 1)),
        Comparison(prompt, "Yes", "yes"),
        Ranking(prompt, ("a", "a", "b"), (0, 1, 2)),
    ]
    assert kept(records) == records
    assert list(clean(records, ["normalise", "exact_duplicates"]).records) == records[2:]


def test_shingles_by_hand():
    tokens = Tokens()
    numbers = tokens.of("The cat sat, the CAT sat!")
    assert len(numbers) == 6 and len(set(numbers.tolist())) == 3
    # the cat sat | cat sat the | sat the cat | the cat sat again
    assert len(shingles(numbers, 3)) == 3
    assert len(shingles(tokens.of("two words"), 3)) == 1 and len(shingles(tokens.of(""), 3)) == 0
    assert (
        len(tokens.of("今天下雨 again")) == 5
        and is_unspaced("今天下雨 again")
        and not is_unspaced("雨 is rain in Chinese")
    )
    assert tokens.of("3 + 4").tolist() != tokens.of("3 * 4").tolist()
    assert tokens.of("😀").tolist() != tokens.of("😢").tolist()
    assert tokens.of("cat").tolist() == Tokens().of("cat").tolist()
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(runs(tokens.of("a b c"), 3), runs(tokens.of("c b a"), 3))


def test_jaccard_by_hand():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([1]), np.array([2])) == 0.0
    assert jaccard(np.array([], int), np.array([], int)) == 1.0
    assert jaccard(np.array([], int), np.array([1])) == 0.0


@pytest.mark.parametrize("text", [WORDS, CHINESE])
def test_a_word_more_makes_a_near_duplicate_and_half_a_text_does_not(text):
    records = [
        Document(text, HERE),
        Document(text + ("。全文完" if text is CHINESE else " again"), HERE),
        Document(text[: len(text) // 2], HERE),
    ]
    assert kept(records, "near_duplicates") == [records[0], records[2]]
    assert kept(records, "near_duplicates", similarity=1.0) == records


def test_punctuation_makes_no_difference():
    records = [asked("Tom has 9 balloons. Sara has 8.", "17"), asked("Tom has 9 balloons , Sara has 8 .", "17")]
    assert kept(records, "near_duplicates") == records[:1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (asked(WORDS, "seven stones"), asked(WORDS, "eight boats")),  # the same prompt with another reply
        (asked(WORDS + " why", WORDS), asked(CHINESE, WORDS)),
        (Document(WORDS + " in 1950", HERE), Document(WORDS + " in 1951", HERE)),
        (user_prompt(WORDS + "\n\nInput: cat", HERE), user_prompt(WORDS + "\n\nInput: dog", HERE)),
        (user_prompt(WORDS + "\nVerb: went", HERE), user_prompt(WORDS + "\nVerb: goes", HERE)),
        (asked(WORDS + "\n\nInput: cat", "noun"), asked(WORDS + "\n\nInput: dog", "noun")),
        (Document("3 + 4", HERE), Document("3 - 4", HERE)),
        (asked("say it", "I like apple I like apple"), asked("say it", "I like apple I like apple I like apple")),
        (asked("as emoji", "😀😀"), asked("as emoji", "😢")),
        (Comparison(user_prompt(WORDS, HERE), WORDS, CHINESE), Comparison(user_prompt(WORDS, HERE), CHINESE, WORDS)),
    ],
)
def test_texts_that_only_look_alike_both_stay(first, second):
    assert kept([first, second], "near_duplicates") == [first, second]


def test_every_dropped_record_is_like_one_that_stays_though_likeness_has_no_chain():
    words = WORDS.split()
    # Each text loses a word of the one before it; ends of the chain are unlike.
    chain = [Document(" ".join(words[number:]), HERE) for number in range(8)]
    done = clean(chain, ["near_duplicates"], CleanOptions(examples=99, similarity=0.9))
    tokens = Tokens()
    sets = [shingles(tokens.of(record.text), 3) for record in chain]
    for example in done.report.of("near_duplicates").examples:
        assert example.kept is not None
        stays = int(example.kept.split("record ")[1][:-1])
        assert chain[stays] in done.records and jaccard(sets[example.number], sets[stays]) >= 0.9
    assert 1 < len(done.records) < 8
    assert clean(done.records, ["near_duplicates"]).records == done.records


def test_no_pair_above_the_similarity_is_missed():
    generator = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        words = [f"w{number}" for number in generator.integers(0, 10**6, 60)]
        texts += [" ".join(words), " ".join([*words[:-2], "changed", "words"])]
    records = [
        Document(text.replace("w", "").translate(str.maketrans("0123456789", "abcdefghij")), HERE) for text in texts
    ]
    # 58 runs of three, of which the last two differ: 56 / 60 = .933
    assert kept(records, "near_duplicates", similarity=0.9) == records[::2]
    assert kept(records, "near_duplicates", similarity=0.95) == records
    assert kept(records, "near_duplicates", similarity=0.9, seed=7) == records[::2]


def test_bands_by_hand():
    assert bands(0.9) == (16, 8)  # (1 - .9^8)^16 = 1.2e-4; with 9 rows (1 - .9^9)^14 = 1.06e-3
    assert bands(1.0) == (2, 64)
    assert bands(0.5) == (64, 2)


LEAKED = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
LEAKED_ZH = "小明在四月份卖给了四十八个朋友发夹，然后在五月份卖出了一半的数量，请问一共卖了多少个发夹？"


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("As we know, Natalia sold clips to 48 of her FRIENDS in april and then she left.", False),  # 13 words and more
        ("Natalia sold clips to 48 of her friends in April; and later she bought more.", True),  # 11 words
        ("问题：小明在四月份卖给了四十八个朋友发夹然后在五月份离开。", False),
        ("小明在四月份卖给了四十八个朋友很多东西，然后离开。", True),
        ("name a planet", False),
        ("Name a planet and its moons.", True),
        ("nothing in common", True),
    ],
)
def test_contamination(text, stays):
    evaluation = (("gsm", (LEAKED, LEAKED_ZH)), ("short", ("Name a planet.",)))
    records = [asked(text, "x"), asked("x", text)]
    assert kept(records, "contaminated") == records
    left = kept(records, "contaminated", evaluation=evaluation)
    if stays or text == "name a planet":  # a short text is looked for in prompts only
        assert records[1] in left
    assert (records[0] in left) == stays
    reasons = clean(records, ["contaminated"], CleanOptions(evaluation=evaluation)).report.of("contaminated").reasons
    assert stays == (reasons == ())


def test_what_a_set_asks_in_every_item_is_no_leak():
    template = "You will be given a sentence and you have to say whether it is true or false:"
    evaluation = (("set", tuple(f"{template} {word} {word}ly {word}er is here" for word in "abcdefghijkl")),)
    records = [asked(f"{template} something else", "true")]
    assert kept(records, "contaminated", evaluation=evaluation) == records
    assert kept(records, "contaminated", evaluation=(("set", evaluation[0][1][:10]),)) == []
