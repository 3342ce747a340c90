"""Personal data in texts: what is found, what is not, where it begins and ends, and how much of a labelled set it is."""

from __future__ import annotations

import itertools
import json
import random
import sys

import pytest
from personal_texts import FOUND, NOT_FOUND, parse

from rlhf_jax.data.privacy import KINDS, Score, Span, evaluate, find, mask, placeholder
from rlhf_jax.data.privacy.phones import REGIONS, find_phones
from rlhf_jax.data.privacy.presidio import PRESIDIO_REGIONS, read_presidio
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.readers.json_arrays import read_json


@pytest.mark.parametrize(("kind", "marked"), [(kind, marked) for kind in FOUND for marked in FOUND[kind]])
def test_each_kind_is_found_with_its_boundaries_in_english_and_chinese(kind, marked):
    text, places = parse(marked)
    assert find(text) == tuple(Span(kind, start, end) for start, end in places)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == []


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("https://bob:secret@example.com/x", "url_credentials", "https://bob:secret@example.com/x"),
        ("http://u:p@93.184.216.34/?t=1", "url_credentials", "http://u:p@93.184.216.34/?t=1"),
        ("13812345678@139.com", "email", "13812345678@139.com"),
        ("IBAN DE89 3704 0044 0532 0130 00", "iban", "DE89 3704 0044 0532 0130 00"),
        ("电话和身份证 11010519491231002X", "chinese_id", "11010519491231002X"),
        ("phone or SSN: 212-68-4470", "ssn", "212-68-4470"),
        ("call 128.178.163.54", "ip", "128.178.163.54"),
        ("phone or card: 378282246310005", "card", "378282246310005"),
    ],
)
def test_of_two_that_overlap_the_one_with_more_proof_stays(text, kind, part):
    start = text.index(part)
    assert find(text) == (Span(kind, start, start + len(part)),)


def test_an_identity_number_that_is_a_card_number_too_stays_an_identity_number():
    both = next(
        number
        for number in (
            f"62010119{year}0101{order:03}{check}"
            for year, order, check in itertools.product(range(50, 99), range(999), range(10))
        )
        if find(number, kinds=("chinese_id",)) and number[:2] == "62" and luhn(number) % 10 == 0
    )
    assert find(both) == (Span("chinese_id", 0, 18),)
    assert find(both, kinds=("card",)) == ()


def luhn(number: str) -> int:
    return sum(
        int(digit) if i % 2 == 0 else sum(divmod(2 * int(digit), 10)) for i, digit in enumerate(reversed(number))
    )


def test_kinds_that_are_not_asked_for_still_keep_their_characters():
    assert find("https://bob:secret@example.com", kinds=("email",)) == ()
    assert find("call 128.178.163.54", kinds=("phone",)) == ()
    assert find("a@b.io 078-05-1120", kinds=("ssn",)) == (Span("ssn", 7, 18),)
    assert find("a@b.io(212) 684-4700") == (Span("email", 0, 6), Span("phone", 6, 20))


def test_every_digit_of_a_check_counts():
    for kind, number in (
        ("card", "4242424242424242"),
        ("iban", "GB82WEST12345698765432"),
        ("chinese_id", "11010519491231002X"),
    ):
        assert find(number, kinds=(kind,)) == (Span(kind, 0, len(number)),)
        for i, old in enumerate(number):
            for new in set("0123456789" if old.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ") - {old}:
                assert not find(number[:i] + new + number[i + 1 :], kinds=(kind,)), (kind, i, new)


def test_an_identity_number_has_a_province_and_a_date_of_birth_that_exist():
    assert identity_number("11010519491231002") == "11010519491231002X"
    for seventeen, right in (
        ("44052420000229001", True),
        ("44052419990229001", False),
        ("44052419990431001", False),
        ("99052420000229001", False),
        ("44052421000228001", False),
    ):
        assert bool(find(identity_number(seventeen))) == right, seventeen


def identity_number(seventeen: str) -> str:
    """With its check character, by the table of weights in GB 11643."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return seventeen + "10X98765432"[sum(w * int(d) for w, d in zip(weights, seventeen, strict=True)) % 11]


def test_an_iban_has_the_length_of_its_country_even_with_right_check_digits():
    for account, right in (("WEST12345698765432", True), ("WEST1234569876543", False), ("WEST123456987654321", False)):
        digits = "".join(str(int(character, 36)) for character in account + "GB00")
        assert bool(find(f"GB{98 - int(digits) % 97:02}{account}")) == right, account


def test_regions_say_whose_numbers_are_known_without_a_country_code():
    text = "Mme Dupont, 01 42 68 53 00"
    assert find(text) == ()
    assert find(text, regions=("FR",)) == (Span("phone", 12, 26),)
    assert find("(212) 684-4700, +33 1 42 68 53 00", regions=()) == (Span("phone", 16, 33),)
    assert find("给我13812345678", regions=("US",)) == ()
    assert find("13058881234 stars", regions=("US",)) == ()


def test_masks_name_the_kind_and_masking_again_changes_nothing():
    text = "写信给a@b.io，或拨13812345678；见 https://x:y@h.io/ 和 8.8.8.8"
    masked, spans = mask(text)
    assert masked == "写信给<EMAIL>，或拨<PHONE>；见 <URL_CREDENTIALS> 和 <IP>"
    assert spans == find(text)
    assert mask(masked) == (masked, ())
    assert mask("nothing") == ("nothing", ())
    assert mask(text, kinds=("email",))[0] == text.replace("a@b.io", "<EMAIL>")


def test_what_shows_itself_only_beside_a_placeholder_is_masked_too_with_its_place_in_the_text():
    text = "a@b.io, 078-05-1120https://u:p@h.io/ 8.8.8.8"
    assert [span.kind for span in find(text)] == ["email", "url_credentials", "ip"]
    masked, spans = mask(text)
    assert masked == "<EMAIL>, <SSN><URL_CREDENTIALS> <IP>"
    assert [text[span.start : span.end] for span in spans] == ["a@b.io", "078-05-1120", "https://u:p@h.io/", "8.8.8.8"]


def rebuilt(text: str, spans: tuple[Span, ...]):
    end = 0
    for span in spans:
        yield from (text[end : span.start], placeholder(span.kind))
        end = span.end
    yield text[end:]


def test_a_placeholder_says_nothing_about_the_number_behind_it():
    for text in (
        "Call 212-684-4700, 12345678 sold",
        "4242424242424242 and 4212883012996",
        "SSN 078-05-1120, 123456789",
    ):
        masked, spans = mask(text)
        assert len(spans) == 1
        assert mask(masked) == (masked, ())


def test_masking_is_idempotent_on_pieces_glued_at_random():
    noise = random.Random(0)
    found = [parse(marked)[0] for kind in FOUND for marked in FOUND[kind]]
    bare = [parse(m)[0][a:b] for kind in FOUND for m in FOUND[kind] for a, b in parse(m)[1]]
    glue = [
        "",
        " ",
        "-",
        ".",
        ",",
        ", ",
        "1",
        "a",
        "电话",
        "tel ",
        "card ",
        "@",
        "://",
        "+",
        "(",
        ")",
        "\n",
        "<",
        ">",
        "。",
    ]
    for _ in range(400):
        text = "".join(noise.choice(pool) for pool in noise.choices([bare, glue, found, NOT_FOUND], (4, 4, 1, 1), k=8))
        for kinds in (KINDS, tuple(noise.sample(KINDS, 3))):
            masked, spans = mask(text, kinds)
            assert mask(masked, kinds) == (masked, ()), text
            assert "".join(rebuilt(text, spans)) == masked, text


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "1",
            "12",
            "1 ",
            "1-",
            "1.",
            "1:",
            "1/",
            "0123456789 ",
            "4111 ",
            "4111-",
            "22 33 ",
            "555-123-4567 ",
            "1.2.3.4 ",
            "+1",
            "tel 1",
        ),
        *(
            "a@",
            "a@a.",
            "a.",
            "@",
            "a",
            "-",
            "%",
            ":",
            "::",
            "a:",
            "fe80:",
            "://",
            "a://",
            "a://a:a",
            "http://a?token",
            "&token",
            "?",
        ),
        *(
            "GB82",
            "GB82 ",
            "GB82WEST",
            "DE89 3704 ",
            "(",
            "((1",
            "電",
            "１",
            "<",
            "078-05-1120www.h.io?token=1 ",
            "a@b.io1",
        ),
    ],
)
def test_no_text_takes_more_than_linear_time(piece):
    assert find(piece * (100_000 // len(piece)), kinds=KINDS[:-1]) is not None
    assert (
        find_phones(piece * (20_000 // len(piece))) is not None
    )  # linear too, with 0.1 ms for each number that is tried


def test_scores_are_counted_by_hand():
    text = "a@b.io c@d.io 212-684-4700 078-05-1120"
    labels = (Span("email", 0, 6), Span("phone", 18, 26), Span("phone", 27, 30), Span("card", 0, 6))
    scores = evaluate([(text, labels), ("a@b.io", (Span("email", 0, 6),)), ("a@b.io c", (Span("email", 6, 8),))])
    assert scores["email"] == Score(labelled=3, found=4, right=2, recalled=2, exact=2)
    assert scores["phone"] == Score(labelled=2, found=1, right=1, recalled=1, exact=0)
    assert scores["ssn"] == Score(found=1)
    assert (scores["email"].precision, scores["phone"].recall, scores["ssn"].precision) == (0.5, 0.5, 0.0)
    assert scores["card"] == Score(labelled=1) and scores["card"].precision != scores["card"].precision
    assert tuple(evaluate([], kinds=("ip", "email"))) == ("email", "ip")


@pytest.mark.parametrize(
    ("kinds", "regions", "said"),
    [
        (("mail",), REGIONS, "no kind 'mail'.*email"),
        (KINDS, ("UK",), "no region 'UK'.*mean"),
        (KINDS, ("us",), "mean US"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(kinds, regions, said):
    with pytest.raises(KeyError, match=said):
        find("text", kinds, regions)


def test_without_the_package_only_phones_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    assert find("a@b.io", kinds=("email",)) == (Span("email", 0, 6),)
    with pytest.raises(ValueError, match=r"pip install 'rlhf_jax\[data\]'"):
        find_phones("text")


def test_labels_of_another_form_are_refused_with_their_place(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"full_text": "a", "spans": [{"entity_type": "US_SSN"}]}]))
    with pytest.raises(DataError, match=r"labels\.json:1: .*start_position"):
        read_presidio(path)


# Precision and recall that are reached, for two lists of regions; both are of spans that overlap.
REACHED = {
    "email": ((1.0, 1.0), (1.0, 1.0)),
    "iban": ((1.0, 1.0), (1.0, 1.0)),
    "card": ((1.0, 0.93), (1.0, 0.93)),
    "ssn": ((1.0, 1.0), (1.0, 1.0)),
    "ip": ((1.0, 1.0), (1.0, 1.0)),
    "phone": ((0.985, 0.735), (0.975, 0.93)),
}


@pytest.mark.parametrize(("column", "regions"), [(0, REGIONS), (1, PRESIDIO_REGIONS)])
def test_the_labelled_set_of_presidio(data_root, column, regions):
    path = data_root / "safety" / "presidio" / "synth_dataset_v2.json.gz"
    if not path.is_file():
        pytest.skip(f"no labelled texts of Presidio at {path}")
    labelled = read_presidio(path)
    assert len(labelled) == 1500
    scores = evaluate(labelled, regions=regions)
    for kind, bounds in REACHED.items():
        precision, recall = bounds[column]
        assert scores[kind].precision >= precision, (kind, scores[kind])
        assert scores[kind].recall >= recall, (kind, scores[kind])
        assert scores[kind].exact == scores[kind].right, (kind, scores[kind])
    assert not scores["url_credentials"].found and not scores["chinese_id"].found


def test_what_is_found_in_alpaca_was_read_and_is_right(data_root):
    """127 spans in 42,148 texts, none of them arithmetic, a date or a version."""
    paths = sorted((data_root / "instructions" / "alpaca-en").glob("*.json.gz"))
    if not paths:
        pytest.skip(f"no Alpaca at {data_root / 'instructions' / 'alpaca-en'}")
    texts = ["\n".join(map(str, row.values())) for path in paths for _, row in read_json(path)]
    kinds = [span.kind for text in texts for span in find(text)]
    assert {kind: kinds.count(kind) for kind in KINDS if kind in kinds} == {
        "email": 63,
        "card": 1,
        "ip": 18,
        "phone": 45,
    }
