"""Preparing with Apache Beam gives the set that preparing in one process gives, to the digest, and fails as plainly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.config import Curation
from rlhf_jax.data.adapters.stored import record_id
from rlhf_jax.data.clean import RULES, CleanOptions, clean, rule
from rlhf_jax.data.erasure.forget import forget
from rlhf_jax.data.erasure.forgotten import Forgotten
from rlhf_jax.data.prepared.beam import ERROR, Plan, _careful, _groups, _links, prepare_with_beam
from rlhf_jax.data.prepared.prepare import prepare
from rlhf_jax.data.prepared.sets import ABOUT
from rlhf_jax.data.schema import Demonstration, Provenance, Rated, user_prompt
from rlhf_jax.data.sources import load_source, parse_source
from rlhf_jax.files import check_sums

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.prefix) / "beam" / "bin" / "python"
needs_beam = pytest.mark.skipif(
    not PYTHON.is_file(),
    reason=f"Apache Beam has an environment of its own, looked for in {PYTHON.parents[1]}; `make beam` makes it",
)
TWO_WORKERS = ("runner=DirectRunner", "direct_num_workers=2", "direct_running_mode=multi_processing")
WHERE = Provenance("s", "MIT")
WORDS = [first + second for first in "bcdfghklmnprst" for second in "aeiouyaeioux"]


def run_beam(
    root: Path, source: str, name: str, *more: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    command = (
        "prepare",
        source,
        "--name",
        name,
        "--data-root",
        root,
        "--into",
        root / "sets",
        *more,
        "--beam",
        *options,
    )
    return subprocess.run(
        [PYTHON, "-m", "rlhf_jax.data", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def changed(count: int) -> str:
    """A long text, the first of whose words here and there are others: 0.9 alike to those with one or two more."""
    return " ".join(
        "zz" + word if place % 20 == 10 and place < 20 * count else word for place, word in enumerate(WORDS)
    )


def about(root: Path, name: str) -> dict:
    return json.loads((root / "sets" / name / "1.0.0" / ABOUT).read_text(encoding="utf-8"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three files with duplicates within and between them, something to mask, and a damaged line."""
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    for file in range(3):
        rows = [
            {"instruction": f"Q{n % 40}", "output": f"A{n % 40} of {n % 7}"} for n in range(30 * file, 30 * file + 90)
        ]
        rows += [
            {"instruction": f"Write to me{n}@mail.org", "output": "As an AI language model, I cannot."}
            for n in range(2)
        ]
        rows += [{"instruction": f"Call me{n}@mail.org", "output": f"Dear friend {n}"} for n in range(5)]
        # A chain: each is near the next one, the ends are not near each other; which of them stay depends on the order.
        rows += [{"instruction": "Tell", "output": changed(n)} for n in (file, 7 - file, 4 + file)]
        rows += [{"instruction": "", "output": "nothing was asked"}]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"rows-{file}.jsonl").write_text(text + ("oops\n" if file == 1 else ""))
    rated = [{"instruction": "Rate", "input": "", "output": f"so {n}", "rating": 4.3 + n / 3} for n in range(3)]
    (tmp_path / "rows-3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    # Masks make the replies of the first pair one, which a rule has to be told though no other record is like it.
    pairs = [
        {"prompt": "Who?", "chosen": f"ask a{n}@mail.org", "rejected": f"ask b{n}@mail.org" + " now" * n}
        for n in range(2)
    ]
    (tmp_path / "rows-4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


SPEC = "jsonl:rows-*.jsonl?damaged=salvage&licence=MIT"
RULES_ASKED = ("repair", "refusal", "exact_duplicates", "near_duplicates", "length", "contaminated")


@needs_beam
def test_two_workers_make_the_set_that_one_process_makes(root):
    forget([record_id(load_source(SPEC, root).records[3])], [], root / "sets")
    (root / "exam.jsonl").write_text(json.dumps({"instruction": "Q7", "output": "A7 of 0"}) + "\n")
    unseen = ("alpaca:exam.jsonl?licence=MIT",)
    done = run_beam(
        root,
        SPEC,
        "beamed",
        *("--clean", *RULES_ASKED, "--mask", "email", "--unseen", *unseen),
        options=TWO_WORKERS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curation = Curation(clean=RULES_ASKED, unseen=unseen, mask=("email",))
    made = prepare(SPEC, "alone", root, root / "sets", curation)
    assert about(root, "beamed") == about(root, "alone")
    assert made.left_out["forgotten"] == 1 and made.left_out["refusal: refuses as models do"] == 6
    assert {why.partition(":")[0] for why in made.left_out} >= {"exact_duplicates", "near_duplicates", "contaminated"}
    assert made.left_out["exact_duplicates: its replies do not differ"] == 1
    assert made.damage and made.digest in done.stdout
    check_sums(root / "sets" / "beamed" / "1.0.0")
    beamed = load_source("tfds:beamed/1.0.0:train", root / "sets").records
    assert beamed == load_source(made.source, root).records
    rewards = [record.reward for record in beamed if isinstance(record, Rated)]
    assert rewards == [4.3, 4.3 + 1 / 3, 4.3 + 2 / 3], "no digit is lost"
    assert sum("<EMAIL>" in record.prompt.turns[0].text for record in beamed) == 5
    # What is there is not made again, by either road.
    assert (
        run_beam(root, SPEC, "alone", *("--clean", *RULES_ASKED, "--mask", "email", "--unseen", *unseen)).returncode
        == 0
    )


@needs_beam
def test_what_is_wrong_with_the_data_is_said_in_one_line_and_leaves_no_set(root):
    done = run_beam(root, "jsonl:rows-*.jsonl", "strict", options=TWO_WORKERS)
    said = "rows-1.jsonl:102: malformed JSON at column 1 (Expecting value); expected one JSON object per line"
    assert done.returncode == 2 and done.stderr.endswith(f"python -m rlhf_jax.data: error: {said}\n")
    assert "Traceback" not in done.stderr
    assert not (root / "sets" / "strict" / "1.0.0").exists()
    (root / "none.jsonl").write_text('{"instruction": "Q", "output": "As an AI language model, I cannot do that."}\n')
    done = run_beam(root, "alpaca:none.jsonl", "none", "--clean", "refusal")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "leaves no record to prepare: {'refusal: refuses as models do': 1}" in done.stderr
    done = run_beam(root, SPEC, "other", options=("direct_num_workrs=2",))
    assert done.returncode == 2 and "--beam direct_num_workrs=2: Discarding unparseable args" in done.stderr
    done = run_beam(root, SPEC, "other", options=("direct_running_mode=foo",))
    assert done.returncode == 2 and "invalid choice: 'foo'" in done.stderr.splitlines()[-1]
    assert not list((root / "sets").glob("[!.]*")), "nothing that looks like a set"


def test_the_first_error_is_left_for_the_process_that_asked_even_where_it_says_nothing(tmp_path):
    plan = Plan(parse_source("lines:a"), tmp_path, tmp_path, Curation(), Forgotten())

    def wrong(element, plan):
        yield element
        raise element

    assert list(_careful(ValueError(), wrong, plan)) and (tmp_path / ERROR).read_text() == "ValueError"
    assert not list(_careful(ValueError("later"), wrong, plan)), "the others stop"
    assert (tmp_path / ERROR).read_text() == "ValueError"


def test_without_beam_it_says_where_beam_goes(root):
    with pytest.raises(ValueError, match="Apache Beam is not installed; make an environment of its own"):
        prepare_with_beam(SPEC, "any", root, root / "sets")


def test_a_rule_that_needs_all_records_is_refused_before_anything_is_read(root, monkeypatch):
    monkeypatch.setitem(RULES, "rarest", RULES["empty"])
    monkeypatch.delitem(RULES, "rarest")

    @rule
    def rarest(records, options):
        """Keeps all."""
        return records

    with pytest.raises(ValueError, match="the rule rarest looks at all records, and has no keys"):
        prepare_with_beam(SPEC, "any", root, root / "sets", Curation(clean=("rarest",)))


def test_every_rule_judges_groups_of_records_with_a_key_in_common_as_it_judges_all(root):
    records = [
        *load_source(SPEC, root).records,
        *(Demonstration(user_prompt("Say", WHERE), changed(n)) for n in (5, 0, 7, 2, 3, 1, 4, 6)),
    ]
    options = CleanOptions(languages=("en",), evaluation=(("exam", ("Q7",)),), reply_characters=(3, 200))
    for name, each in RULES.items():
        assert each.keys is not None, f"{name} ships, and cannot be used with Beam"
        meeting: dict[bytes, list[tuple[int, int]]] = {}
        for number, keys in enumerate(each.keys(records, options)):
            for key in keys:
                meeting.setdefault(key, []).append((0, number))
        groups = _groups(link for met in meeting.items() for link in _links(met))
        apart: dict[object, list[int]] = {}
        for number in range(len(records)):
            apart.setdefault(groups.get((0, number), number), []).append(number)
        kept = []
        for numbers in apart.values():
            kept += [numbers[place] for place in clean([records[n] for n in numbers], [name], options).numbers]
        assert tuple(sorted(kept)) == clean(records, [name], options).numbers, name


def test_groups_are_the_connected_parts():
    links = [((0, 1), (0, 2)), ((1, 5), (1, 4)), ((0, 2), (0, 7)), ((1, 4), (0, 7)), ((3, 3), (3, 4))]
    groups = _groups(links)
    parts = {frozenset(number for number in groups if groups[number] == root) for root in groups.values()}
    assert parts == {frozenset({(0, 1), (0, 2), (0, 7), (1, 4), (1, 5)}), frozenset({(3, 3), (3, 4)})}
    assert _groups([]) == {}
