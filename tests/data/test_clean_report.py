import json

import pytest

from rlhf_jax.data.clean import DEFAULT, RULES, CleanOptions, Dropped, clean, drops, rule
from rlhf_jax.data.clean.registry import changes
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Piece,
    Prompt,
    Provenance,
    Ranking,
    Rated,
    Turn,
    texts_of,
    user_prompt,
    with_texts,
)

HERE = Provenance("test", "MIT", "file:1")
PROMPT = Prompt((Turn("system", "s"), Turn("user", "u")), HERE, key="own")
EVERY = (
    PROMPT,
    Demonstration(PROMPT, "r"),
    Conversation((Turn("user", "u"), Turn("assistant", "a"), Turn("user", "v"), Turn("assistant", "b")), HERE),
    Document("d", HERE),
    Comparison(PROMPT, "c", "r", margin=0.5),
    Ranking(PROMPT, ("x", "y"), (0, 1)),
    Rated(PROMPT, "r", 0.5),
    Labelled("t", 1, HERE),
    Classified("t", "label", HERE),
    LabelledReply(PROMPT, "r", True),
)
DIRTY = (
    Document("cafÃ©", HERE),
    Document("a\u200bb\r\n", HERE),
    Document(" ", HERE),
    Demonstration(user_prompt("a", HERE), "<nooutput>"),
    Demonstration(user_prompt("b", HERE), "抱歉，我无法回答。"),
    Demonstration(user_prompt("c", HERE), "I am ChatGPT."),
    Demonstration(user_prompt("d", HERE), "```\nx"),
    Document("a b", HERE),
    Document("a  B", HERE),
    Document("ab", HERE),
    Document("one two three four five six seven eight nine ten eleven twelve.", HERE),
    Document("one two three four five six seven eight nine ten eleven twelve!", HERE),
    Document("a, b", HERE),
)


def test_texts_of_every_kind_of_record():
    before = (Piece("prompt", "s"), Piece("prompt", "u"))
    assert [texts_of(record) for record in EVERY] == [
        before,
        (*before, Piece("reply", "r")),
        (Piece("prompt", "u"), Piece("reply", "a"), Piece("prompt", "v"), Piece("reply", "b")),
        (Piece("text", "d"),),
        (*before, Piece("judged", "c"), Piece("judged", "r")),
        (*before, Piece("judged", "x"), Piece("judged", "y")),
        (*before, Piece("judged", "r")),
        (Piece("text", "t"),),
        (Piece("text", "t"),),
        (*before, Piece("judged", "r")),
    ]


@pytest.mark.parametrize("record", EVERY, ids=lambda record: type(record).__name__)
def test_changing_the_texts_changes_nothing_else(record):
    assert with_texts(record, str) is record
    changed = with_texts(record, str.upper)
    assert [piece.text for piece in texts_of(changed)] == [piece.text.upper() for piece in texts_of(record)]
    assert with_texts(changed, str.lower) == record


def test_a_key_made_of_the_texts_follows_them():
    assert with_texts(user_prompt("u", HERE), str.upper).key == "U"
    assert with_texts(PROMPT, str.upper).key == "own"


@pytest.mark.parametrize("record", EVERY, ids=lambda record: type(record).__name__)
def test_every_rule_takes_every_kind_of_record(record):
    options = CleanOptions(
        languages=("en",), prompt_characters=(1, 9), reply_characters=(1, 9), evaluation=(("set", ("no leak",)),)
    )
    assert clean([record], options=options).records == (record,)
    assert clean([record, record], options=options).report.dropped == 1


def test_nothing_is_dropped_in_silence():
    done = clean(DIRTY)
    report = done.report
    assert report.records == len(DIRTY) and report.kept == len(done.records)
    left = len(DIRTY)
    for found in report.rules:
        assert found.records == left and found.dropped == sum(count for _, count in found.reasons)
        assert len(found.examples) == min(3, found.dropped + found.changed)
        left = found.kept
    assert left == len(done.records)
    assert {found.name: found.dropped + found.changed for found in report.rules} == {
        "repair": 1,
        "normalise": 1,
        "empty": 1,
        "placeholder": 1,
        "refusal": 1,
        "self_identification": 1,
        "truncated": 1,
        "language": 0,
        "length": 0,
        "exact_duplicates": 2,
        "near_duplicates": 2,
        "contaminated": 0,
    }


@pytest.mark.parametrize("name", DEFAULT)
def test_a_rule_that_is_left_out_does_nothing(name):
    done = clean(DIRTY, [other for other in DEFAULT if other != name])
    assert name not in [found.name for found in done.report.rules]
    with pytest.raises(KeyError, match=f"{name}' did not run"):
        done.report.of(name)
    if clean(DIRTY).report.of(name).dropped:
        assert (
            done.report.dropped < clean(DIRTY).report.dropped or name == "exact_duplicates"
        )  # near_duplicates finds those too


def test_no_rules_change_nothing():
    done = clean(DIRTY, [])
    assert done.records == DIRTY and done.report.dropped == 0


def test_the_order_of_the_records_stays_and_that_of_the_names_does_not_matter():
    done = clean(DIRTY)
    assert [record.text for record in done.records if isinstance(record, Document)] == [
        "café", "ab\n", "a b", "one two three four five six seven eight nine ten eleven twelve."
    ]  # fmt: skip
    assert clean(DIRTY, reversed(DEFAULT)) == done == clean(iter(DIRTY))


def test_cleaning_twice_changes_nothing_more():
    once = clean(DIRTY).records
    again = clean(once)
    assert again.records == once and sum(found.changed for found in again.report.rules) == 0


def test_a_report_as_json_and_as_a_page():
    report = clean(DIRTY, options=CleanOptions(examples=1)).report
    told = json.loads(json.dumps(report.as_json()))
    assert told["records"] == len(DIRTY) and told["kept"] == report.kept
    assert [found["name"] for found in told["rules"]] == list(DEFAULT)
    page = report.markdown()
    assert f"| **kept** | {report.kept} | | {report.dropped} |" in page
    assert "| empty | 13 | 0 | 1 |" in page
    assert "- e.g. file:1 (record 3): has a marker in place of a reply: ``<nooutput>``" in page
    assert (
        "ends inside a block of code: ``'''\\nx``" in page
    )  # what it quotes can neither end the quotation nor the line


def test_names_of_rules_are_checked_and_every_rule_says_what_it_does():
    with pytest.raises(KeyError, match="no rule of cleaning 'refusals'; did you mean refusal"):
        clean((), ["refusals"])
    for each in RULES.values():
        assert 40 < len(each.about) <= 140 and each.about.endswith(".")


def test_a_rule_of_ones_own(monkeypatch):
    for name in ("shouting", "whisper", "everything"):
        monkeypatch.setitem(RULES, name, RULES["empty"])
        monkeypatch.delitem(RULES, name)

    @drops
    def shouting(record, options):
        """Drops what is written in capitals."""
        text = texts_of(record)[0].text
        return Dropped("shouts", text) if text.isupper() else None

    @changes
    def whisper(text):
        """Makes everything small."""
        return text.lower()

    @rule
    def everything(records, options):
        """Drops everything."""
        return [Dropped("all", "") for _ in records]

    records = [Document("A", HERE), Document("Bb", HERE)]
    assert clean(records, [*DEFAULT, "shouting"]).records == (records[1],)
    assert clean(records, ["whisper"]).records == (Document("a", HERE), Document("bb", HERE))
    assert (
        clean(records, ["everything"]).report.kept == 0
        and RULES["shouting"].about == "Drops what is written in capitals."
    )
    assert "shouting" not in DEFAULT
    with pytest.raises(ValueError, match="there is a rule 'shouting' already"):
        drops(shouting)


def test_a_rule_without_a_verdict_for_each_record_is_an_error(monkeypatch):
    monkeypatch.setitem(RULES, "silent", RULES["empty"])
    monkeypatch.delitem(RULES, "silent")

    @rule
    def silent(records, options):
        """Drops without a word."""
        return []

    with pytest.raises(ValueError, match="shorter"):
        clean(DIRTY, ["silent"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"languages": ("english",)}, "languages: 'english' is none that can be told; expected some of ar, bg"),
        ({"reply_characters": (5, 2)}, r"reply_characters is \(5, 2\); expected \(fewest, most\)"),
        ({"prompt_characters": (-1, 2)}, "prompt_characters is"),
        ({"similarity": 0.0}, "similarity is 0.0; expected a Jaccard similarity above 0"),
        ({"similarity": 1.5}, "similarity is 1.5"),
        ({"examples": -1}, "examples is -1; expected 0 or more"),
        ({"evaluation": (("a", ()), ("a", ()))}, "evaluation names a set twice: a, a"),
    ],
)
def test_wrong_options_say_what_would_be_right(options, said):
    with pytest.raises(ValueError, match=said):
        CleanOptions(**options)
