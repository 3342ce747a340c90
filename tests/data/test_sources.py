import json
import re

import data_table
import pytest

from rlhf_jax.data.readers import DataError
from rlhf_jax.data.schema import Comparison, Labelled, Prompt, Provenance, Turn, user_prompt
from rlhf_jax.data.sources import find_data_root, load_source
from rlhf_jax.data.splits import prompt_key, split_by_prompt
from rlhf_jax.worlds.instruct import InstructWorld

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
        Provenance("lines:prompts/*.txt", "CC0", "prompts/a.txt:1"),
        Provenance("lines:prompts/*.txt", "CC0", "prompts/a.txt:2"),
        Provenance("lines:prompts/*.txt", "unknown", "prompts/b.txt:1"),
    ]


def test_a_wrong_request_says_what_would_be_right(root):
    with pytest.raises(KeyError, match="did you mean lines"):
        load_source("line:prompts/*.txt", root)
    with pytest.raises(KeyError, match=r"did you mean alpaca or alpaca_eval or .* or zip"):
        load_source("zzz:prompts/*.txt", root)
    with pytest.raises(FileNotFoundError, match=rf"'prompts/\*\.csv' under {root}"):
        load_source("lines:prompts/*.csv", root)
    for spec in ("prompts/*.txt", "lines:", "lines:?unit=line"):
        with pytest.raises(ValueError, match=r"is not NAME:PATH, such as alpaca:"):
            load_source(spec, root)
    for options, said in {
        "unit=word": "unit=word; expected line or paragraph or file",
        "damaged=never": "damaged=never; expected strict or salvage",
        "method=magic": "method=magic; expected human or crowd or generated or unknown",
        "format=xml": "format=xml; expected jsonl or",
        "columns=a,,b": "columns=a,,b; expected names that differ",
        "columns=a,a": "columns=a,a; expected names that differ",
        "fields=a": "fields=a; expected OURS:THEIRS",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            load_source(f"lines:prompts/*.txt?{options}", root)
    with pytest.raises(KeyError, match="has no option 'colums'; did you mean columns"):
        load_source("lines:prompts/*.txt?colums=a", root)
    with pytest.raises(KeyError, match="no adapter 'alpacca'; did you mean alpaca"):
        load_source("json:prompts/*.txt?as=alpacca", root)


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


def turns(record):
    return [(turn.role, turn.text) for turn in record.prompt.turns]


def test_a_path_may_be_absolute_and_a_glob_may_ask_for_any_character(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert len(load_source(f"lines:{root}/prompts/?.txt", elsewhere).records) == 3
    assert len(load_source("lines:prompts/?.txt?unit=line", root).records) == 3


def test_the_layout_is_told_by_the_fields_where_the_source_names_a_format(root):
    rows = [
        {"instruction": "Add.", "output": "3"},
        {"prompt": "Q", "chosen": "a", "rejected": "b"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    ]
    for number, row in enumerate(rows):
        (root / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    found = [type(record).__name__ for record in load_source("jsonl:*.jsonl", root).records]
    assert found == ["Demonstration", "Comparison", "Conversation"]
    (root / "3.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    with pytest.raises(
        DataError, match=r"3\.jsonl:1: the fields 'question', 'answer' could be questions or gsm8k; say which"
    ):
        load_source("jsonl:3.jsonl", root)
    assert load_source("jsonl:3.jsonl?as=questions", root).records[0].reply == "#### 2"
    (root / "4.jsonl").write_text('{"frage": "1 + 1?", "antwort": "2"}\n')
    with pytest.raises(
        DataError, match=r"4\.jsonl:1: no known layout has the fields 'frage', 'antwort'; name the adapter"
    ):
        load_source("jsonl:4.jsonl", root)
    mapped = load_source("jsonl:4.jsonl?fields=instruction:frage,output:antwort", root).records[0]
    assert (turns(mapped), mapped.reply) == ([("user", "1 + 1?")], "2")
    with pytest.raises(
        DataError, match=r"4\.jsonl:1: no field 'x', which fields= names; the row has 'frage', 'antwort'"
    ):
        load_source("jsonl:4.jsonl?fields=instruction:x", root)


def test_a_table_without_a_header_has_the_columns_of_its_layout(root):
    (root / "bare.csv").write_text('Smile.,nan,":)",7\nAdd.,1 and 2,3,5\n')
    (root / "named.csv").write_text("rating,output,instruction\n5,3,Add.\n")
    bare, named = (load_source(f"ratings:{name}.csv", root).records for name in ("bare", "named"))
    assert [(turns(record), record.reply, record.reward) for record in bare] == [
        ([("user", "Smile.")], ":)", 7.0),
        ([("user", "Add.\n\n1 and 2")], "3", 5.0),
    ]
    assert [(turns(record), record.reply, record.reward) for record in named] == [([("user", "Add.")], "3", 5.0)]
    (root / "other.csv").write_text("5,3,Add.\n")
    other = load_source("csv:other.csv?as=ratings&columns=rating,output,instruction", root).records
    assert [record.reward for record in other] == [5.0]


def test_lists_may_be_written_out_in_cells(root):
    (root / "ranked.csv").write_text(
        'prompt,replies,places\nQ,"[""a"", ""b""]","[1, 0]"\nQ,"[\'a\', \'b\']","[0, 1]"\nQ,oops,[0]\n'
    )
    loaded = load_source("csv:ranked.csv?damaged=salvage", root)
    assert [(record.replies, record.places) for record in loaded.records] == [
        (("a", "b"), (1, 0)),
        (("a", "b"), (0, 1)),
    ]
    assert [str(error) for error in loaded.damage] == [
        "ranked.csv:4: field 'replies' is 'oops'; expected an array of texts"
    ]


def test_strict_stops_at_the_first_damage_and_salvage_counts_it(root):
    content = b'{"prompt": "a"}\n{"prompt": 3}\n{"prompt": " "}\n{"other": 1}\n{"prompt":\n{"prompt": "caf\xe9"}\n{"prompt": "b"}\n'
    (root / "mixed.jsonl").write_bytes(content)
    (root / "mixed2.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"^mixed\.jsonl:2: field 'prompt' is a int; expected text"):
        load_source("prompts:mixed*.jsonl", root)
    loaded = load_source("prompts:mixed*.jsonl?damaged=salvage", root)
    assert [record.turns[0].text for record in loaded.records] == ["a", "b"]
    assert loaded.rejected == (("mixed.jsonl:3", "the prompt is empty"),)
    assert [error.place for error in loaded.damage] == [
        *("mixed.jsonl:2", "mixed.jsonl:4", "mixed.jsonl:5", "mixed.jsonl:6"),
        "mixed2.jsonl:1",
    ]
    assert loaded.rows == 3


def test_files_side_by_side_are_translations_row_by_row(root):
    (root / "a.en").write_text("Hi\n\nWell\n")
    (root / "a.zh").write_text("你好\n嗯\n好吧\n\n")
    (root / "b.jsonl").write_text('{"id": 1, "say": "Hi"}\n{"id": 2, "say": "Yes"}\n')
    (root / "c.jsonl").write_text('{"id": 1, "say": "你好"}\n{"id": 2, "say": "Yes"}\n')
    entries = [{"file": "b.jsonl", "licence": "MIT"}, {"file": "c.jsonl", "licence": "CC0"}]
    (root / "manifest.json").write_text(json.dumps(entries))
    loaded = load_source("parallel:en=a.en,zh=a.zh", root)
    assert [record.reply for record in loaded.records] == ["你好", "Hi", "好吧", "Well"]
    assert loaded.records[2].prompt.provenance.place == "a.en:3"
    assert [reason for _, reason in loaded.rejected] == ["a side of the translation is empty"]
    loaded = load_source("parallel:en=[b].jsonl,zh=c.jsonl?field=say", root)
    assert [record.reply for record in loaded.records] == ["你好", "Hi"]
    assert loaded.records[0].prompt.provenance.licence == "MIT; CC0"
    assert [reason for _, reason in loaded.rejected] == ["two sides of the translation are the same text"]


def test_files_side_by_side_that_do_not_fit_are_never_paired_wrongly(root):
    (root / "a.en").write_text("Hi\nWell\nNo\n")
    (root / "a.zh").write_text("你好\n好吧\n")
    (root / "b.jsonl").write_text('{"text": "Hi"}\noops\n{"text": "Well"}\n')
    with pytest.raises(
        DataError, match=r"^a\.en:3: zh ended after 2 rows, and here is one more; expected files of as many"
    ):
        load_source("parallel:en=a.en,zh=a.zh", root)
    salvaged = load_source("parallel:en=a.en,zh=a.zh?damaged=salvage", root)
    assert len(salvaged.records) == 4 and len(salvaged.damage) == 1
    # Behind a line that cannot be read every row would meet another than its own.
    salvaged = load_source("parallel:zh=a.zh,en=b.jsonl?damaged=salvage", root)
    assert [record.reply for record in salvaged.records] == ["Hi", "你好"]
    assert salvaged.damage[0].place == "b.jsonl:2"
    with pytest.raises(DataError, match=r"a\.zh:1: no field 'say'; say field=NAME; the row has 'text'"):
        load_source("parallel:zh=a.zh,en=b.jsonl?field=say", root)
    for folder, names in {"d1": ("p.en", "q.en"), "d2": ("q.zh", "r.zh")}.items():
        (root / folder).mkdir()
        for name in names:
            (root / folder / name).write_text(f"{name}\n")
    for where, counts in {"en=d1/*.en,zh=d2/*.zh": "en 2, zh 2", "en=prompts/*.txt,zh=a.zh": "en 2, zh 1"}.items():
        with pytest.raises(ValueError, match=f"whose names agree where the globs have a wild card; found {counts}"):
            load_source(f"parallel:{where}", root)
    (root / "d2" / "p.zh").write_text("p.zh\n")
    (root / "d2" / "r.zh").unlink()
    paired = [record.reply for record in load_source("parallel:en=d1/*.en,zh=d2/*.zh", root).records]
    assert paired == ["p.zh", "p.en", "q.zh", "q.en"]
    for where in ("en=a.en", "a.en,a.zh", "en=a.en,en=a.zh", "en=a.en,zh=", "en=b.en,en=a.en,zh=a.zh"):
        with pytest.raises(ValueError, match="expected two languages or more, such as parallel:en="):
            load_source(f"parallel:{where}", root)


def test_licence_and_method_of_collection_may_be_said_by_the_source(root):
    (record,) = load_source("lines:prompts/b.txt?licence=CC BY 4.0&method=crowd", root).records
    assert record.provenance == Provenance(
        "lines:prompts/b.txt?licence=CC BY 4.0&method=crowd", "CC BY 4.0", "prompts/b.txt:1", "crowd"
    )


def test_the_instruction_world_is_a_source(root):
    records = load_source("world:instruct?rows=5&seed=3", root).records
    assert records == tuple(InstructWorld(seed=3).demonstrations(5))
    for wrong in ("world:instruct", "world:instruct?rows=x", "world:moon?rows=5"):
        with pytest.raises(ValueError, match=r"expected world:instruct\?rows=N"):
            load_source(wrong, root)


def test_a_folder_in_the_layout_of_the_hub_is_a_source(root):
    folder = root / "org" / "set"
    folder.mkdir(parents=True)
    rows = [{"prompt": "Q", "completion": "A"}, {"prompt": "R", "completion": "B"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = load_source("hf:org/set:train", root).records
    assert [(turns(record), record.reply) for record in records] == [([("user", "Q")], "A"), ([("user", "R")], "B")]
    assert records[1].prompt.provenance.place == "org/set:train[1]"
    with pytest.raises(ValueError, match="hf:org/set:valid: datasets cannot load it"):
        load_source("hf:org/set:valid", root)
    with pytest.raises(ValueError, match="names no split; expected hf:NAME:SPLIT"):
        load_source("hf:set", root)


def test_every_source_of_the_shared_data_is_accounted_for(data_root):
    """The table of docs/data.md is what the code does."""
    assert data_table.page(data_root) == data_table.PAGE.read_text(encoding="utf-8"), "python tests/data_table.py"
    # Label Studio's own short form of the exports drops what was skipped and who answered.
    assert all(file.endswith("_min.json") for file in data_table.uncovered(data_root))
