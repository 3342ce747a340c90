"""`python -m rlhf_jax.data`: what its commands print and write, and how they refuse."""

import json

import pytest

from rlhf_jax.data.__main__ import main
from rlhf_jax.data.sources import load_source
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.data.tokens.shown import shown


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"Is {n} good?", "output": "" if n == 3 else "Yes."} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "oops\n")
    pair = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}] * 2
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    return tmp_path


GOOD = "alpaca:rows.jsonl?damaged=salvage&licence=MIT"


def run(capsys, *arguments):
    """(exit code, what was printed, what was said on stderr)."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_reading_says_what_there_is_and_what_is_not(root, capsys):
    code, out, _ = run(capsys, "read", GOOD)
    assert code == 0
    assert out.splitlines() == [
        "5 rows, 4 records",
        "  kinds: 4 Demonstration",
        "  licences: 4 MIT",
        "  left out: 1 the output is empty",
        "  damaged: rows.jsonl:6: malformed JSON at column 1 (Expecting value); expected one JSON object per line",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("read", "alpaca:rows.jsonl"), "rows.jsonl:6: malformed JSON at column 1"),
        (("read", "alpacca:rows.jsonl"), "no source 'alpacca'; did you mean alpaca"),
        (("read", "alpaca:nowhere.jsonl"), "no file matches 'nowhere.jsonl' under"),
        (("prepare", GOOD, "--name", "My Set"), "a set cannot be called 'My Set'"),
        (
            ("export", GOOD, "--form", "preference", "--out", "{}/x.jsonl"),
            "the form preference has no row for any of the records",
        ),
        (("export", GOOD, "--form", "openai", "--out", "{}/rows.jsonl"), "rows.jsonl is there already"),
        (("show", GOOD, "--tokenizer", "nowhere.model", "--template", "plain"), "no tokenizer"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_exit_code_two(root, capsys, arguments, said):
    code, out, err = run(capsys, *(argument.format(root) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("python -m rlhf_jax.data: error: ")
    assert said in err and err.count("\n") == 1


def test_a_prepared_set_is_read_by_its_name_and_taken_out_again(root, capsys):
    code, out, err = run(capsys, "prepare", GOOD, "--name", "tiny")
    assert code == 0
    assert (
        "4 records of 5 rows" in out
        and "left out: 1 the output is empty" in out
        and "read it as tfds:tiny:train" in out
    )
    assert "read 5\n" in err and "write 4\n" in err
    assert run(capsys, "prepare", GOOD, "--name", "tiny")[1] == out
    assert load_source("tfds:tiny:train", root).records == load_source(GOOD, root).records
    code, out, _ = run(capsys, "export", "tfds:tiny:train", "--form", "openai", "--out", root / "chat.jsonl")
    assert (code, out) == (0, f"4 rows in {root / 'chat.jsonl'}\n")
    first = json.loads((root / "chat.jsonl").read_text().splitlines()[0])
    assert first == {"messages": [{"role": "user", "content": "Is 0 good?"}, {"role": "assistant", "content": "Yes."}]}


def test_a_card_and_a_prepared_set_are_cleaned_as_asked_for(root, capsys):
    rows = [{"instruction": "Write to me.", "output": "Mail ann@example.org."}] * 2 + [
        {"instruction": "Q", "output": "N/A"}
    ]
    (root / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ("--clean", "placeholder", "exact_duplicates", "--mask", "email")
    code, out, _ = run(capsys, "card", "alpaca:twice.jsonl", *how, "--report")
    assert code == 0
    assert "1 records of 3 rows" in out and "Masked: 2 email." in out
    assert "- e.g. twice.jsonl:2 (record 1): the same texts as an earlier record, kept: twice.jsonl:1 (record 0)" in out
    code, out, _ = run(capsys, "prepare", "alpaca:twice.jsonl", "--name", "once", *how)
    assert "1 records of 3 rows" in out
    assert "left out: 1 exact_duplicates: the same texts as an earlier record" in out
    assert load_source("tfds:once:train", root).records[0].reply == "Mail <EMAIL>."
    assert run(capsys, "prepare", "alpaca:twice.jsonl", "--name", "once")[0] == 2
    assert "no rule of cleaning 'exact'" in run(capsys, "card", "alpaca:twice.jsonl", "--clean", "exact")[2]


def test_layouts_are_listed_with_their_fields(capsys):
    _, out, _ = run(capsys, "layouts")
    assert "alpaca             instruction, output" in out
    assert "records            kind, id, turns, replies" in out
    assert "Formats: jsonl, json, csv" in out


def test_shown_tokens_have_what_is_learned_between_marks(root, trained, capsys):
    trained.save(root / "tiny.model")
    how = ("--tokenizer", "tiny.model", "--template", "zephyr", "--count", "1")
    _, out, _ = run(capsys, "show", "messages:talk.jsonl", *how)
    assert "talk.jsonl:1 · Conversation" in out
    assert "<s><|user|>⏎\nHi</s>⏎\n<|assistant|>⏎\n«Yes.</s>»⏎\n<|user|>⏎\nHi</s>⏎\n<|assistant|>⏎\n«Yes.</s>»" in out
    _, out, _ = run(
        capsys,
        "show",
        "pairs:pairs.jsonl=2.5",
        "--tokenizer",
        root / "tiny.model",
        "--template",
        "plain",
        "--count",
        "1",
    )
    assert "chosen: " in out and "«Yes.</s>»" in out.replace("« ", "«")
    assert "rejected: " in out


def test_a_part_of_a_character_is_shown_as_its_number(trained):
    ids = trained.encode("猫")
    text = shown(Encoded(tuple(ids[:1]), tuple(ids[1:])), trained).plain
    assert text.count("<0x") == len(ids) == 3
    assert text.index("«") < text.index("»")
