"""The main figures of docs/cleaning.md, on what runs in seconds."""

import cleaning_table
import pytest

from rlhf_jax.data.clean import DEFAULT, RULES, CleanOptions, clean
from rlhf_jax.data.schema import texts_of
from rlhf_jax.data.sources import load_source

FACTS = {
    "code.json": {"normalise": 28, "exact_duplicates": 1158, "near_duplicates": 38},  # of 9,057: "many duplicates"
    "identity.json": {"placeholder": 85},  # of 91; the other six answer without a name
    "MAWPS": {"exact_duplicates": 86, "near_duplicates": 118},
}
# Rules that judge a record by itself find the same whichever others run.
ALPACA = {
    "Alpaca, English": {"truncated": 28},
    "Alpaca, Chinese": {"placeholder": 39, "refusal": 6, "truncated": 4},
}


@pytest.mark.parametrize("name", FACTS)
def test_what_each_rule_finds(data_root, name):
    records = cleaning_table.records_of(cleaning_table.SOURCES[name], data_root)
    done = clean(records)
    found = {rule.name: rule.dropped + rule.changed for rule in done.report.rules}
    assert {rule: count for rule, count in found.items() if count} == FACTS[name]
    assert done.report.records == len(records) and done.report.kept == len(done.records)


def test_cleaning_again_finds_nothing(data_root):
    records = cleaning_table.records_of(cleaning_table.SOURCES["code.json"], data_root)[:2500]
    records += cleaning_table.records_of(cleaning_table.TRANSLATED, data_root)[::20]
    done = clean(records)
    assert done.report.dropped
    again = clean(done.records)
    assert again.records == done.records and not any(rule.dropped or rule.changed for rule in again.report.rules)


@pytest.mark.parametrize("name", ALPACA)
def test_replies_of_alpaca(data_root, name):
    records = cleaning_table.records_of(cleaning_table.SOURCES[name], data_root)
    assert {rule.name: rule.dropped for rule in clean(records, ALPACA[name]).report.rules} == ALPACA[name]


def test_imdb_is_repaired(data_root):
    report = clean(
        cleaning_table.records_of(cleaning_table.SOURCES["IMDB"], data_root), ["repair", "exact_duplicates"]
    ).report
    assert (report.of("repair").changed, report.of("exact_duplicates").dropped) == (93, 5)


def test_near_duplicates_alone_find_every_exact_one(data_root):
    records = cleaning_table.records_of(cleaning_table.SOURCES["code.json"], data_root)
    exact, near = (cleaning_table.dropped(records, rule) for rule in ("exact_duplicates", "near_duplicates"))
    assert len(exact) == 1158 and exact <= near and len(near) == 1196


def test_the_groups_of_the_demo_of_deduplication(data_root):
    assert cleaning_table.groups(data_root) == [(6, 11), (7, 8), (9, 10), (12, 13)]
    assert cleaning_table.groups(data_root, similarity=0.5) == [(0, 5), (6, 11), (7, 8), (9, 10), (12, 13)]


def test_two_files_of_chinese_alpaca_are_in_english_to_a_good_part(data_root):
    records = cleaning_table.records_of(cleaning_table.TRANSLATED, data_root)[::10]
    shares = {}
    for file, counts in cleaning_table.reply_languages(records).items():
        known = counts.total() - counts["unknown"]
        shares[file[len("alpaca_data_zh-") : -len(".json.gz")]] = counts["en"] / known
    assert 0.8 < shares.pop("12345-15323") < 0.95 and 0.25 < shares.pop("18280-21320") < 0.45
    assert max(shares.values()) < 0.03


def test_prompts_that_the_data_page_says_are_shared_are_found(data_root):
    trained, tested = cleaning_table.LEAKS[1]
    prompts = {texts_of(record)[0].text for record in load_source(tested, data_root).records}
    records = load_source(trained, data_root).records
    gone = cleaning_table.dropped(records, "contaminated", evaluation=((tested, tuple(sorted(prompts))),))
    # What is left are the 77 prompts of another set that were asked there too.
    left = {texts_of(record)[0].text.strip() for number, record in enumerate(records) if number not in gone}
    assert len(gone) == 595 and len(left) == 77
    assert not left & {prompt.strip() for prompt in prompts}


def test_the_page_tells_every_rule():
    page = cleaning_table.PAGE.read_text(encoding="utf-8")
    for name in DEFAULT:
        assert f"| {name} | {RULES[name].about} |" in page
    assert CleanOptions().similarity == 0.9 and "0.9" in page.partition(cleaning_table.MARK)[0]
