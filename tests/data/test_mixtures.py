"""A mixture of sources: licences, masking, cleaning across sources, and its data card."""

import json

import pytest

from rlhf_jax.config import Curation
from rlhf_jax.data.card import agreement, card, markdown
from rlhf_jax.data.mixtures import gather
from rlhf_jax.data.provenance import check_licences, licence_ids
from rlhf_jax.data.schema import Comparison, Demonstration, Provenance, user_prompt


@pytest.fixture
def root(tmp_path):
    """Two sets that share a record, of two licences."""
    one = [("Add 1 and 2.", "3"), ("Write to me.", "Mail to ann@example.org, please."), ("Say nothing.", "<nooutput>")]
    two = [("add 1  and 2.", "3"), ("Name a colour.", "Blue."), ("Empty.", "")]
    for name, rows in {"one": one, "two": two}.items():
        text = "".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    manifest = [{"file": "one.jsonl", "licence": "MIT"}, {"file": "two.jsonl", "licence": "CC BY-NC 4.0 (somebody)"}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Name a colour.", "answer": "Red."}) + "\n")
    return tmp_path


SOURCES = ("alpaca:one.jsonl", "alpaca:two.jsonl")


def replies(gathered):
    return [[record.reply for record in part if isinstance(record, Demonstration)] for part in gathered.records]


def test_nothing_is_done_that_was_not_asked_for(root):
    gathered = gather(SOURCES, root, Curation())
    assert replies(gathered) == [["3", "Mail to ann@example.org, please.", "<nooutput>"], ["3", "Blue."]]
    assert gathered.rows == (3, 3)
    assert [len(part) for part in gathered.rejected] == [0, 1]
    assert gathered.report.dropped == 0 and not gathered.masked


def test_sources_are_cleaned_together_and_each_keeps_its_own(root):
    rules = ("placeholder", "exact_duplicates", "contaminated")
    curation = Curation(clean=rules, unseen=("questions:test.jsonl",), mask=("email",))
    gathered = gather(SOURCES, root, curation)
    # The second "3" asks what the first did but for case and blanks; the colour is a question of the test set.
    assert replies(gathered) == [["3", "Mail to <EMAIL>, please."], []]
    assert [(rule.name, rule.dropped) for rule in gathered.report.rules] == [(rule, 1) for rule in rules]
    assert gathered.masked == {"email": 1}


def test_a_licence_that_is_not_allowed_is_refused_with_its_source(root):
    assert len(gather(SOURCES, root, Curation(licences=("mit", "CC-BY-NC-4.0"))).records) == 2
    refused = r"allows MIT; 'alpaca:two\.jsonl' is under 'CC BY-NC 4\.0 \(somebody\)': CC-BY-NC-4\.0 is not allowed"
    with pytest.raises(ValueError, match=refused):
        gather(SOURCES, root, Curation(licences=("MIT",)))
    with pytest.raises(ValueError, match="'lines:x' is under 'unknown': unknown is not allowed"):
        check_licences([("lines:x", "unknown")], ("MIT",))


@pytest.mark.parametrize(
    ("stated", "names"),
    [
        ("MIT", {"MIT"}),
        ("MIT (translation) over CC BY-NC 4.0 (Stanford Alpaca)", {"MIT", "CC-BY-NC-4.0"}),
        (
            "Apache-2.0 (repository); content derived from GPT-4 Alpaca data, CC BY-NC 4.0",
            {"Apache-2.0", "CC-BY-NC-4.0"},
        ),
        ("ODC-By 1.0 (DATA_LICENSE); project notes research use only", {"ODC-By-1.0", "research-only"}),
        ("no licence stated (SST/GLUE); copying repository is MIT", {"unknown", "MIT"}),
        ("CC BY-SA 3.0 (Wikipedia)", {"CC-BY-SA-3.0"}),
        ("public domain (Project Gutenberg)", {"public-domain"}),
        ("our own terms", {"our own terms"}),
        ("", {"unknown"}),
    ],
)
def test_every_licence_that_a_text_names_binds(stated, names):
    assert licence_ids(stated) == names


def test_rules_that_read_an_option_have_to_be_named_with_it():
    for option in ({"languages": ("en",)}, {"unseen": ("prompts:x",)}):
        with pytest.raises(ValueError, match=r"but data.clean does not name '(language|contaminated)'"):
            Curation(**option)


def test_the_card_counts_what_is_there_and_what_is_not(root):
    gathered = gather(SOURCES, root, Curation(clean=("exact_duplicates",)))
    told = card("a mixture", gathered)
    json.dumps(told)
    one, two = told["sources"]
    assert (one["records"], two["records"], told["records"]) == (3, 1, 4)
    assert one["licence names"] == ["MIT"] and two["licence names"] == ["CC-BY-NC-4.0"]
    assert one["personal data"] == {"email": 1}
    assert one["characters"]["reply or text"] == {"median": 10, "95 %": 32, "longest": 32}
    assert two["left out"] == {"the output is empty": 1}
    page = markdown(told)
    assert "1 records of 3 rows" in page and "| exact_duplicates | 5 | 0 | 1 |" in page


def judged(who, chosen, rejected):
    where = Provenance("s", "MIT", annotator=who)
    return Comparison(user_prompt("Q", where), chosen, rejected)


def test_agreement_is_over_pairs_of_judgements_on_the_same_replies():
    said = [judged("a", "x", "y"), judged("b", "x", "y"), judged("c", "y", "x"), judged("a", "x", "z")]
    assert agreement(said) == {"pairs of judgements": 3, "agree": 1 / 3}
    assert agreement(said[-1:]) is None
    assert agreement([Comparison(user_prompt("Q", Provenance("s", "MIT")), "x", "y")] * 2) is None
