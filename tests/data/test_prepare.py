"""Prepared sets: every kind of record comes back as it was, and what was killed ends as what was not."""

import json
import subprocess
import sys

import pytest

from rlhf_jax.config import Curation
from rlhf_jax.data.adapters.stored import from_row, record_id, to_row
from rlhf_jax.data.prepared import prepare as module
from rlhf_jax.data.prepared.exports import FORMS, export
from rlhf_jax.data.prepared.prepare import prepare
from rlhf_jax.data.prepared.sets import VERSION
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Prompt,
    Provenance,
    Ranking,
    Rated,
    Turn,
    user_prompt,
)
from rlhf_jax.data.sources import load_source
from rlhf_jax.files import check_sums

WHERE = Provenance("s", "MIT", "f:1", "human", "annotator-1")
ASKED = user_prompt("Wie geht's? 你好", WHERE, key="k")
SYSTEM = Prompt((Turn("system", "S"), Turn("user", "Q")), WHERE, key="S\n\nQ")
TALK = Conversation((Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "B")), WHERE)
RECORDS = (
    *(ASKED, Demonstration(ASKED, "gut"), Demonstration(SYSTEM, "A"), TALK, Document("T\n", WHERE)),
    *(Comparison(ASKED, "a", "", 0.5, 2 / 3), Comparison(SYSTEM, "a", "b"), Ranking(ASKED, ("a", "b", "c"), (1, 0, 1))),
    *(Rated(ASKED, "a", 4.5), Labelled("a film", 1, WHERE), Classified("which?", "ask", WHERE)),
    *(LabelledReply(ASKED, "a", True), LabelledReply(SYSTEM, "b", False)),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_one_row_and_back(record):
    row = json.loads(json.dumps(to_row(record)))
    assert from_row(row, Provenance("", "")) == record


def test_the_number_of_a_record_is_its_content_and_who_said_it():
    asked = ASKED.turns[0].text
    moved = user_prompt(asked, Provenance("t", "x", annotator="annotator-1"), "k")
    assert record_id(Demonstration(moved, "gut")) == record_id(Demonstration(ASKED, "gut"))
    others = [*RECORDS, Demonstration(user_prompt(asked, Provenance("s", "MIT"), "k"), "gut")]
    assert len({record_id(record) for record in others}) == len(others)


def test_a_row_that_is_none_says_so():
    with pytest.raises(DataError, match=r"not a stored record \(KeyError: 'sermon'"):
        from_row({**to_row(ASKED), "kind": "sermon"}, WHERE)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root of alpaca rows, three of them of no use, and pieces of ten rows."""
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PIECE", 10)
    rows = [{"instruction": f"Q{n}", "input": "", "output": "" if n % 10 == 4 else f"A{n}"} for n in range(35)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "oops\n")
    return tmp_path


SPEC = "alpaca:rows.jsonl?damaged=salvage&licence=MIT"


def test_a_prepared_set_is_its_source_and_says_what_was_left_out(root):
    told = []
    made = prepare(SPEC, "tiny", root, root / "cache" / "datasets", tell=lambda stage, done: told.append((stage, done)))
    assert (made.rows, made.records, made.left_out) == (35, 31, {"the output is empty": 4})
    assert made.damage == (
        "rows.jsonl:36: malformed JSON at column 1 (Expecting value); expected one JSON object per line",
    )
    assert load_source(made.source, root).records == load_source(SPEC, root).records
    assert [done for stage, done in told if stage == "read"] == [10, 20, 30, 35]
    check_sums(made.folder)
    assert prepare(SPEC, "tiny", root, root / "cache" / "datasets") == made
    assert not list((root / "cache" / "datasets").glob(".*"))


def test_a_set_is_never_taken_for_another(root):
    into = root / "cache" / "datasets"
    prepare(SPEC, "tiny", root, into)
    with pytest.raises(ValueError, match="prepare this under another name, or remove it"):
        prepare("alpaca:rows.jsonl?damaged=salvage", "tiny", root, into)
    with pytest.raises(ValueError, match="a set cannot be called 'My Set'"):
        prepare(SPEC, "My Set", root, into)
    (root / "rows.jsonl").write_text('{"instruction": "Q", "output": "A"}\n')
    with pytest.raises(ValueError, match="prepare this under another name, or remove it"):
        prepare(SPEC, "tiny", root, into)


def test_damage_of_a_prepared_set_is_found_where_it_is_read_and_mended_by_preparing_again(root):
    made = prepare(SPEC, "tiny", root, root / "cache" / "datasets")
    (shard,) = made.folder.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged or missing"):
        load_source(made.source, root)
    assert prepare(SPEC, "tiny", root, root / "cache" / "datasets") == made
    assert len(load_source(made.source, root).records) == 31


def test_what_cleaning_leaves_out_is_counted_with_the_rest(root):
    again = "".join(json.dumps({"instruction": f"q{n}", "output": f"A{n} "}) + "\n" for n in range(3))
    (root / "rows.jsonl").write_text((root / "rows.jsonl").read_text() + again)
    made = prepare(SPEC, "tiny", root, root / "sets", Curation(clean=("exact_duplicates",)))
    why = "exact_duplicates: the same texts as an earlier record"
    assert (made.records, made.left_out) == (31, {"the output is empty": 4, why: 3})
    (root / "none.jsonl").write_text('{"instruction": "Q", "output": "As an AI language model, I cannot do that."}\n')
    with pytest.raises(ValueError, match=r"leaves no record to prepare: \{'refusal: refuses as models do': 1\}"):
        prepare("alpaca:none.jsonl", "none", root, root / "sets", Curation(clean=("refusal",)))
    with pytest.raises(ValueError, match=r"data\.licences allows CC0-1\.0; 'alpaca:rows.jsonl.*MIT is not allowed"):
        prepare(SPEC, "bound", root, root / "sets", Curation(licences=("CC0-1.0",)))


def test_strict_damage_ends_it_and_nothing_is_left_that_looks_finished(root):
    with pytest.raises(DataError, match=r"rows\.jsonl:36: malformed JSON"):
        prepare("alpaca:rows.jsonl", "tiny", root, root / "sets")
    with pytest.raises(FileNotFoundError, match="no data set 'tiny'"):
        load_source("tfds:tiny:train", root)


# Each child is forked from a process that has everything imported, so that kills fall into the work.
SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import array_record.python.array_record_module, tensorflow_datasets
from rlhf_jax.data.prepared import prepare as module, sets

module.PIECE, ALL = 200, 30
root, chance = Path(sys.argv[1]), random.Random(0)
tensorflow_datasets.core.GeneratorBasedBuilder  # imported when it is named

def start(name):
    child = os.fork()
    if child == 0:
        try:
            module.prepare("alpaca:many.jsonl", name, root, root / "sets")
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    return child

def ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

def pieces():
    return len(list(work.glob("*-*.json")))

begun, work = time.monotonic(), root / "sets" / ".many.preparing"
assert os.waitpid(start("whole"), 0)[1] == 0
seconds, killed, stages = time.monotonic() - begun, 0, set()
while killed < 20:
    before = pieces()
    aim, child = min(before + chance.randrange(1, 5), ALL), start("many")
    # Somewhere behind one of the next pieces, however fast this machine is today; when all are there, somewhere in what comes then.
    while before < ALL and pieces() < aim and not ended(child):
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.002 if before < ALL else 0.4) * seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    stages |= {pieces(), *(p.name[:10] for p in (work / "written" / "many").glob("*"))}
    if sets.finished(root / "sets" / "many" / sets.VERSION):  # it was done before: begin anew
        shutil.rmtree(root / "sets" / "many")
assert os.waitpid(start("many"), 0)[1] == 0
digests = [sets.finished(root / "sets" / name / sets.VERSION)["digest"] for name in ("whole", "many")]
print(len(stages), *digests)
"""


def test_killed_twenty_times_it_ends_with_the_same_digest(tmp_path):
    rows = ({"instruction": f"Question {n}" * 20, "output": f"Answer {n}" * 20} for n in range(6000))
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    places, whole, killed = done.stdout.split()[-3:]
    assert killed == whole
    assert int(places) > 6, "the kills fell into different stages of the work"
    check_sums(tmp_path / "sets" / "many" / VERSION)
    records = load_source(f"tfds:{tmp_path / 'sets' / 'many' / VERSION}:train", tmp_path).records
    assert records == load_source("alpaca:many.jsonl", tmp_path).records


@pytest.mark.parametrize(
    ("form", "layout", "kinds"),
    [
        ("openai", "messages", (Demonstration, Conversation)),
        ("sharegpt", "sharegpt", (Demonstration, Conversation)),
        ("alpaca", "alpaca", (Demonstration, Conversation)),
        ("preference", "pairs", (Comparison, Ranking)),
        ("unpaired", "unpaired", (LabelledReply,)),
        ("prompts", "prompts", ()),
        ("records", "records", ()),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_goes_out_comes_in_again(tmp_path, form, layout, kinds, suffix):
    records = [record for record in RECORDS if isinstance(record, kinds)] if kinds else list(RECORDS)
    if form == "prompts":
        records = [record for record in records if not isinstance(record, Document | Labelled | Classified)]
    rows, left_out = export(records, form, tmp_path / f"out{suffix}")
    assert not left_out
    back = load_source(f"{layout}:out{suffix}", tmp_path).records
    assert len(back) == rows >= len(records)
    if form == "records":
        assert list(back) == records
    said = [row for record in back for row in FORMS[form](record)]
    assert said == [row for record in records for row in FORMS[form](record)]


def test_records_that_a_form_has_no_row_for_are_counted_and_nothing_is_no_file(tmp_path):
    rows, left_out = export(RECORDS, "preference", tmp_path / "out.jsonl")
    assert rows == 4
    assert left_out["Demonstration"] == left_out["LabelledReply"] == 2
    assert sum(left_out.values()) == len(RECORDS) - 3
    with pytest.raises(ValueError, match=r"the form unpaired has no row for any of the records \(1 of kind Prompt"):
        export([ASKED], "unpaired", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    with pytest.raises(KeyError, match="no form 'alpacca'; did you mean alpaca"):
        export([], "alpacca", tmp_path / "none.jsonl")
