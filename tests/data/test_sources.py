import json

import pytest

from rlhf_jax.data.readers import DataError
from rlhf_jax.data.schema import Comparison, Labelled, Prompt, Provenance, Turn, user_prompt
from rlhf_jax.data.sources import find_data_root, load_source, prompt_key, split_by_prompt

HERE = Provenance("test", "MIT")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "b.txt").write_text("three\n")
    (folder / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "manifest.json").write_text(json.dumps([{"file": "prompts/a.txt", "licence": "CC0"}]))
    return tmp_path


def test_records_come_in_order_of_file_with_place_and_licence(root):
    records = load_source("lines:prompts/*.txt", root).records
    assert [record.provenance for record in records if isinstance(record, Prompt)] == [
        Provenance("lines", "CC0", "prompts/a.txt:1"),
        Provenance("lines", "CC0", "prompts/a.txt:2"),
        Provenance("lines", "unknown", "prompts/b.txt:1"),
    ]


def test_a_wrong_request_says_what_would_be_right(root):
    with pytest.raises(KeyError, match="did you mean lines"):
        load_source("line:prompts/*.txt", root)
    with pytest.raises(
        KeyError,
        match="alpaca or classified or cvalues or hh or imdb or lines or openings or sst2 or tldr or tldr_comparisons or unpaired or "
        "unpaired_messages",
    ):
        load_source("zzz:prompts/*.txt", root)
    with pytest.raises(FileNotFoundError, match=rf"'prompts/\*\.csv' under {root}"):
        load_source("lines:prompts/*.csv", root)
    for spec in ("prompts/*.txt", "lines:", "lines:/tmp/x"):
        with pytest.raises(ValueError, match="ADAPTER:GLOB"):
            load_source(spec, root)


def test_a_broken_manifest_is_an_error_rather_than_no_licences(root):
    (root / "manifest.json").write_text("[1]")
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_source("lines:prompts/*.txt", root)


def test_the_data_root_that_was_named_is_the_only_one_tried(tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setenv("RLHF_JAX_DATA", str(tmp_path / "absent"))
    assert find_data_root(there) == there
    with pytest.raises(FileNotFoundError, match=r"absent \(RLHF_JAX_DATA\)"):
        find_data_root()
    with pytest.raises(FileNotFoundError, match=r"nowhere \(given\)"):
        find_data_root(tmp_path / "nowhere")
    monkeypatch.setenv("RLHF_JAX_DATA", str(there))
    assert find_data_root() == there


def test_the_data_root_beside_the_current_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_JAX_DATA", raising=False)
    monkeypatch.setattr("rlhf_jax.data.sources.__file__", str(tmp_path / "x/y/rlhf_jax/data/sources.py"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(FileNotFoundError, match=r"beside the repository.*beside the current directory"):
        find_data_root()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert find_data_root() == tmp_path / "shared" / "data"


def comparisons(prompts, replies):
    asked = [user_prompt(f"question {number}", HERE) for number in range(prompts)]
    return [Comparison(prompt, f"good {reply}", f"bad {reply}") for prompt in asked for reply in range(replies)]


def test_all_comparisons_of_a_prompt_fall_on_one_side():
    train, held = split_by_prompt(comparisons(400, 3), 0.25, seed=0)
    assert len(train) + len(held) == 1200
    assert not {c.prompt.key for c in train} & {c.prompt.key for c in held}
    assert 0.18 < len(held) / 1200 < 0.32  # 400 prompts: standard deviation 0.022


def test_the_side_of_a_prompt_depends_on_seed_and_prompt_only():
    records = comparisons(200, 1)
    held = {c.prompt.key for c in split_by_prompt(records, 0.5, seed=1)[1]}
    assert {c.prompt.key for c in split_by_prompt(records[::-1], 0.5, seed=1)[1]} == held
    assert {c.prompt.key for c in split_by_prompt(records[:50], 0.5, seed=1)[1]} == held & {
        c.prompt.key for c in records[:50]
    }
    assert {c.prompt.key for c in split_by_prompt(records, 0.5, seed=2)[1]} != held
    # A larger share holds out more prompts beside the same ones.
    assert held < {c.prompt.key for c in split_by_prompt(records, 0.7, seed=1)[1]}


def test_a_prompt_without_a_key_is_known_by_its_turns():
    dialogue = Prompt((Turn("user", "Hi"), Turn("assistant", "Yes?"), Turn("user", "Bye")), HERE)
    assert prompt_key(dialogue) == "Hi\n\nYes?\n\nBye"
    assert prompt_key(Prompt((Turn("user", "Hi"),), HERE)) == prompt_key(user_prompt("Hi", HERE))
    assert prompt_key(Labelled("a film", 1, HERE)) == "a film"


def test_nothing_is_held_out_at_zero_and_everything_is_refused():
    records = comparisons(10, 1)
    assert split_by_prompt(records, 0.0, seed=0) == (tuple(records), ())
    with pytest.raises(ValueError, match=r"held_out is 1\.0"):
        split_by_prompt(records, 1.0, seed=0)
