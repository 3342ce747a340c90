"""The right to erasure: out of prepared sets, out of what is read later, and which checkpoints have seen it."""

import json

import numpy as np
import pytest

from rlhf_jax.config import Curation, Flan
from rlhf_jax.data.__main__ import main
from rlhf_jax.data.adapters.stored import from_row, record_id, to_row
from rlhf_jax.data.batching.batches import packed_batches, token_batches
from rlhf_jax.data.erasure.forget import forget
from rlhf_jax.data.erasure.seen import NEVER, checkpoints_that_saw, seen_by, seen_from_the_start
from rlhf_jax.data.flan import in_formats
from rlhf_jax.data.mixtures import gather
from rlhf_jax.data.prepared.prepare import prepare
from rlhf_jax.data.schema import Demonstration, Provenance, user_prompt
from rlhf_jax.data.sources import load_source
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.files import check_sums

SPEC = "labelstudio:answers.json"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four tasks, each answered by two people."""
    monkeypatch.setenv("RLHF_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    answer = [{"type": "pairwise", "value": {"selected": "left"}}]
    tasks = [
        {
            "id": n,
            "data": {"prompt": f"Q{n}", "response_a": "a", "response_b": "b"},
            "annotations": [{"id": 10 * n + who, "completed_by": who, "result": answer} for who in (1, 2)],
        }
        for n in range(4)
    ]
    (tmp_path / "answers.json").write_text(json.dumps(tasks))
    return tmp_path


def test_a_record_and_all_of_an_annotator_are_taken_out_and_stay_out(root):
    sets = root / "cache" / "datasets"
    made = prepare(SPEC, "answers", root, sets)
    records = load_source(SPEC, root).records
    who = records[0].prompt.provenance.annotator
    other = next(record for record in records if record.prompt.provenance.annotator != who)
    assert forget([record_id(other)], [who], sets) == {made.folder: 5}
    check_sums(made.folder)
    left = load_source("tfds:answers:train", root).records
    assert len(left) == 3 and other not in left
    assert {record.prompt.provenance.annotator for record in left} == {other.prompt.provenance.annotator}
    # Whatever is read from the files, or prepared anew, is without them.
    assert gather([SPEC], root, Curation()).records == (left,)
    assert load_source(SPEC, root).records == left
    assert prepare(SPEC, "again", root, sets).left_out == {"forgotten": 5}
    assert forget([record_id(other)], [], sets) == {}
    assert forget([], [left[0].prompt.provenance.annotator], sets) == {made.folder: 3, sets / "again" / "1.0.0": 3}
    assert not made.folder.exists()
    with pytest.raises(ValueError, match="'Q1' is no id of a record; expected 16 hexadecimal digits"):
        forget(["Q1"], [], sets)


def records_of(count):
    return [
        Demonstration(user_prompt(f"Q{n}", Provenance("s", "MIT", annotator=f"a{n % 3}")), "A") for n in range(count)
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_step_of_each_record_is_the_first_batch_it_is_in(packed):
    examples = [Encoded((1, 10 + n), (2,) * (1 + n % 4)) for n in range(30)]
    counts = [1 + (n % 5 == 0) for n in range(25)]  # five records give two examples each
    if packed:
        batches = packed_batches(examples, rows=2, length=12, pad=0, seed=1, longest=12)
    else:
        batches = token_batches(examples, rows=4, length=8, pad=0, seed=1)
    seen = seen_by(records_of(25), counts, batches, steps=4)
    owner = np.repeat(np.arange(25), counts)
    for record in range(25):
        inside = [
            step
            for step in range(4)
            if set(batches[step].tokens.ravel()) & {10 + n for n in range(30) if owner[n] == record}
        ]
        assert seen.first[record] == (inside[0] if inside else NEVER)
    assert (seen.first == NEVER).any()


def test_checkpoints_are_listed_from_the_step_that_had_the_record(root, capsys):
    records = records_of(6)
    run = root / "runs" / "x" / "seed_0"
    seen = seen_from_the_start(records)
    seen.first[:] = [NEVER, 0, 3, 5, 9, 9]
    seen.save(run / "data" / "seen_sft.npz")
    for stage, steps in {"init": (0,), "sft": (2, 4, 10), "ppo": (1,)}.items():
        for step in steps:
            (run / "checkpoints" / stage / str(step)).mkdir(parents=True)

    def listed(*numbers, annotators=()):
        found = checkpoints_that_saw(root / "runs", [record_id(records[n]) for n in numbers], annotators)
        return ["/".join(path.parts[-2:]) for path, _ in found]

    assert listed(0) == []
    assert listed(1) == ["ppo/1", "sft/2", "sft/4", "sft/10"]
    assert listed(2) == ["ppo/1", "sft/4", "sft/10"]
    assert listed(4) == ["ppo/1", "sft/10"]
    assert listed(annotators=["a2"]) == ["ppo/1", "sft/4", "sft/10"]
    assert main(["forget", "--record", record_id(records[2]), "--runs", str(root / "runs")]) == 0
    out = capsys.readouterr().out
    assert f"{run / 'checkpoints/sft/4'}: trained on it from step 4 on" in out
    assert f"{run / 'checkpoints/ppo/1'}: of a run whose stage sft was trained on it" in out
    assert main(["forget"]) == 2
    assert "say what to forget" in capsys.readouterr().err


def test_ids_are_printed_with_who_and_where(root, capsys):
    assert main(["read", SPEC, "--ids"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    first = load_source(SPEC, root).records[0]
    assert lines[0].split() == [
        record_id(first),
        first.prompt.provenance.annotator,
        *first.prompt.provenance.place.split(),
    ]


def test_what_was_masked_worded_or_ranked_keeps_the_id_it_was_read_under(root):
    rows = [{"instruction": f"Mail ann{n}@example.org", "output": "Yes."} for n in range(4)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = [record_id(record) for record in load_source("alpaca:rows.jsonl", root).records]
    (masked,) = gather(["alpaca:rows.jsonl"], root, Curation(mask=("email",))).records
    assert [record_id(record) for record in masked] == before
    worded = in_formats(masked, Flan(), seed=0)
    assert [record_id(record) for record in worded] == before
    assert worded[0] != masked[0] or worded[1] != masked[1]
    assert all(from_row(to_row(record), Provenance("", "")) == record for record in worded)
    assert [record_id(from_row(to_row(record), Provenance("", ""))) for record in worded] == before
    assert seen_from_the_start(worded).first_step(before[2:3], []) == 0
    assert forget(before[:1], [], root / "cache" / "datasets") == {}
    assert len(load_source("alpaca:rows.jsonl", root).records) == 3


def test_what_a_world_wrote_can_be_forgotten_too(root):
    world = "world:instruct?rows=10&seed=1"
    gone = [record_id(record) for record in load_source(world, root).records[:2]]
    forget(gone, [], root / "cache" / "datasets")
    left = load_source(world, root)
    assert not {*gone} & {record_id(record) for record in left.records} and len(left.rejected) >= 2
