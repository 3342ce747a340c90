import gzip
import io
import json
import struct
import tarfile
import zipfile

import openpyxl
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from rlhf_jax.data.readers import DataError, Reading, format_of
from rlhf_jax.data.readers.archives import read_tar, read_zip
from rlhf_jax.data.readers.examples import read_array_record, read_tfrecord
from rlhf_jax.data.readers.json_arrays import read_json
from rlhf_jax.data.readers.lines import read_jsonl, read_text
from rlhf_jax.data.readers.tables import read_csv, read_parquet, read_tsv, read_xlsx


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows_of(pairs):
    return [row for _, row in pairs]


def tar_of(members, compressed=True):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_every_reader_names_the_line_a_row_came_from(write):
    path = write("a.jsonl", '{"a": 1}\n\n{"a": 2}\r\n')
    assert list(read_jsonl(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]
    path = write("a.json", '[\n {"a": 1},\n {"a":\n 2},\n {"a": 3}\n]\n')
    assert [place for place, _ in read_json(path)] == [f"{path}:{line}" for line in (2, 3, 5)]
    path = write("a.tsv", "x\ty\n1\t\n")
    assert list(read_tsv(path)) == [(f"{path}:2", {"x": "1", "y": ""})]
    path = write("a.txt", "one\n \ntwo")
    assert list(read_text(path)) == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]


def test_gzip_is_known_by_content_whatever_the_name(write):
    path = write("rows.jsonl", gzip.compress(b'{"a": 1}\n'))
    assert rows_of(read_jsonl(path)) == [{"a": 1}]
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz:1: .*not gzip"):
        list(read_jsonl(write("rows.jsonl.gz", '{"a": 1}\n')))


def test_one_object_per_line_is_read_though_the_file_is_called_json(write):
    assert rows_of(read_json(write("lines.json", '{"a": 1}\n{"a": 2}\n'))) == [{"a": 1}, {"a": 2}]


def test_a_byte_order_mark_is_no_part_of_the_first_field(write):
    mark = b"\xef\xbb\xbf"
    assert rows_of(read_jsonl(write("a.jsonl", mark + b'{"a": 1}'))) == [{"a": 1}]
    assert rows_of(read_json(write("a.json", mark + b'[{"a": 1}]'))) == [{"a": 1}]
    assert rows_of(read_tsv(write("a.tsv", mark + b"a\tb\n1\t2"))) == [{"a": "1", "b": "2"}]


def test_unicode_line_separators_do_not_break_a_line(write):
    text = "one\u2028two\x85three\x0bfour"
    assert rows_of(read_jsonl(write("a.jsonl", json.dumps({"t": text}, ensure_ascii=False)))) == [{"t": text}]


def test_a_truncated_gzip_says_where_reading_stopped(write):
    whole = gzip.compress(b"".join(b'{"number": %d}\n' % i for i in range(20_000)))
    path = write("cut.jsonl.gz", whole[: len(whole) // 2])
    read = 0
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz:(\d+): the gzip stream is damaged") as caught:
        for _ in read_jsonl(path):
            read += 1
    assert 0 < read < 20_000
    assert f"cut.jsonl.gz:{read + 1}:" in str(caught.value)


def test_a_flipped_byte_in_a_gzip_is_an_error_and_no_text(write):
    whole = bytearray(gzip.compress(b'{"number": 1}\n' * 1000, compresslevel=1))
    whole[-6] ^= 1  # the checksum
    with pytest.raises(DataError, match="damaged"):
        list(read_jsonl(write("bad.jsonl.gz", bytes(whole))))


@pytest.mark.parametrize("read", [read_jsonl, read_json, read_text, read_tsv])
def test_invalid_utf8_is_named_by_line_and_byte(write, read):
    path = write("latin1.txt", b'{"a": "x"}\n{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin1\.txt:2: byte 0xe9 at position 11 is not UTF-8"):
        list(read(path))


@pytest.mark.parametrize("read", [read_jsonl, read_json, read_text, read_tsv])
@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"")], ids=["bytes", "blanks", "gzip"])
def test_an_empty_file_is_an_error_rather_than_no_data(write, read, content):
    with pytest.raises(DataError, match="the file is empty"):
        list(read(write("empty", content)))


def test_malformed_lines_are_named_with_column(write):
    with pytest.raises(DataError, match=r"a\.jsonl:3: malformed JSON at column 6"):
        list(read_jsonl(write("a.jsonl", '{"a": 1}\n\n{"a":\n')))
    with pytest.raises(DataError, match=r"b\.jsonl:2: a row is a list; expected a JSON object"):
        list(read_jsonl(write("b.jsonl", '{"a": 1}\n[1]\n')))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3),
        ('[\n{"a": 1},\n]', 3),
        ('[\n{"a": 1},\n', 2),
        ('[{"a": 1}]\n{"a": 2}', 2),
        ('[{"a": 1},\n7]', 2),
        ("[]", 1),
    ],
)
def test_a_broken_array_is_named_by_the_line_where_it_breaks(write, content, line):
    with pytest.raises(DataError, match=rf"broken\.json:{line}: "):
        list(read_json(write("broken.json", content)))


def test_columns_are_named_by_the_caller_where_there_is_no_header(write):
    path = write("a.tsv", 'a "quoted\tb\n')
    assert rows_of(read_tsv(path, Reading(columns=("x", "y")))) == [{"x": 'a "quoted', "y": "b"}]
    with pytest.raises(DataError, match=r"a\.tsv:1: 2 tab-separated columns; expected 3: x, y, z"):
        list(read_tsv(path, Reading(columns=("x", "y", "z"))))
    with pytest.raises(DataError, match="header without rows"):
        list(read_tsv(path))


def test_members_of_an_archive_are_read_in_its_order(write):
    content = [("set/pos/0_9.txt", b"good"), ("set/neg/0_1.txt", "schlecht é".encode())]
    for compressed in (True, False):
        path = write("set.tar.gz" if compressed else "set.tar", tar_of(content, compressed))
        expected = [
            (f"{path}:set/pos/0_9.txt", {"member": "set/pos/0_9.txt", "text": "good"}),
            (f"{path}:set/neg/0_1.txt", {"member": "set/neg/0_1.txt", "text": "schlecht é"}),
        ]
        assert list(read_tar(path)) == expected


def test_a_damaged_archive_is_an_error_that_names_the_place(write):
    whole = tar_of([(f"pos/{i}.txt", bytes(range(32, 127)) * 20) for i in range(200)], compressed=False)
    with pytest.raises(DataError, match=r"cut\.tar:pos/\d+\.txt: the archive is damaged"):
        list(read_tar(write("cut.tar", whole[: len(whole) // 2 + 700])))
    packed = gzip.compress(whole)
    with pytest.raises(DataError, match="damaged"):
        list(read_tar(write("cut.tar.gz", packed[: len(packed) // 2])))
    with pytest.raises(DataError, match=r"pos/a\.txt: byte 0xff at position 1 is not UTF-8"):
        list(read_tar(write("bytes.tar.gz", tar_of([("pos/a.txt", b"\xff")]))))
    with pytest.raises(DataError, match="no files"):
        list(read_tar(write("none.tar.gz", tar_of([]))))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


def test_a_real_file_that_breaks_in_the_middle_gives_what_stands_before(data_root):
    path = data_root / "instructions/alpaca-zh/alpaca_data_zh-09407-12345.json.gz"
    read = 0
    with pytest.raises(DataError, match="the 2801 elements before it can be read"):
        for _ in read_json(path):
            read += 1
    assert read == 2801


def test_real_files_called_json_with_one_object_per_line(data_root):
    assert len(list(read_json(data_root / "rl/tldr/test.json.gz"))) == 500


def salvaged(read, path, **options):
    """(rows, damage) of a file that is read past what is wrong with it."""
    damage = []
    return rows_of(read(path, Reading(damaged=damage.append, **options))), [str(error) for error in damage]


def test_damaged_lines_are_told_and_read_past(write):
    path = write("a.jsonl", b'{"a": 1}\n{"a":\n[1]\n{"a": "caf\xe9"}\n{"a": 2}\n')
    rows, damage = salvaged(read_jsonl, path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert [said.removeprefix(f"{path}:").partition(":")[0] for said in damage] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("content", "rows", "lines"),
    [
        ('[\n{"a": 1},\n{"a": },\n{"a": 3}\n]', [1, 3], [3]),
        ('[\n{"a": 1}\n{"a": 2}\n]', [1, 2], [3]),
        ('[\n{"a": 1},\n]', [1], [3]),
        ('[\n{"a": 1},\n7,\n{"a": 2}]', [1, 2], [3]),
        (
            '[\n{"a": 1},\n{"b": [{"c": 1}], "a": "x\n{"a": 2}\n]',
            [1, 2],
            [3],
        ),  # no part of a broken element is an element
        ('[\n{"a": 1},\n{"a": 2', [1], [3, 3]),
    ],
)
def test_a_broken_array_is_read_on_at_the_next_whole_element(write, content, rows, lines):
    path = write("broken.json", content)
    found, damage = salvaged(read_json, path)
    assert [row["a"] for row in found] == rows
    assert [int(said.removeprefix(f"{path}:").partition(":")[0]) for said in damage][: len(lines)] == lines[
        : len(damage)
    ]
    assert damage


def test_a_cut_gzip_gives_what_stands_before(write):
    whole = gzip.compress(b"".join(b'{"number": %d}\n' % i for i in range(20_000)))
    rows, damage = salvaged(read_jsonl, write("cut.jsonl.gz", whole[: len(whole) // 2]))
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len(rows) > 5000
    assert len(damage) == 1


def test_cells_of_csv_hold_commas_quotes_and_newlines_and_rows_have_the_line_they_begin_at(write):
    path = write("a.csv", 'x,y\n"1, ""one""","two\nlines"\n\n3,4\n')
    assert list(read_csv(path)) == [
        (f"{path}:2", {"x": '1, "one"', "y": "two\nlines"}),
        (f"{path}:5", {"x": "3", "y": "4"}),
    ]
    with pytest.raises(DataError, match=r"b\.csv:2: 3 comma-separated columns; expected 2: x, y"):
        list(read_csv(write("b.csv", "x,y\n1,2,3\n")))
    with pytest.raises(DataError, match=r"c\.csv:2: malformed CSV"):
        list(read_csv(write("c.csv", 'x,y\n1,"2\n')))
    with pytest.raises(DataError, match="the file is empty"):
        list(read_csv(write("d.csv", "\n")))
    long = "x" * 200_000  # the module's own limit is 131,072
    assert rows_of(read_csv(write("e.csv", f"x,y\n{long},2\n"))) == [{"x": long, "y": "2"}]


def test_a_header_is_no_row_where_its_names_are_given_too(write):
    path = write("a.csv", "x,y\n1,2\n")
    assert rows_of(read_csv(path, Reading(columns=("x", "y")))) == [{"x": "1", "y": "2"}]


def test_texts_by_line_by_paragraph_and_whole(write):
    path = write("a.txt", "one\ntwo\n\n \nthree\n")
    units = {unit: list(read_text(path, Reading(unit=unit))) for unit in ("line", "paragraph", "file")}
    assert [row["text"] for _, row in units["line"]] == ["one", "two", "three"]
    assert units["paragraph"] == [(f"{path}:1", {"text": "one\ntwo"}), (f"{path}:5", {"text": "three"})]
    assert units["file"] == [(f"{path}:1", {"text": "one\ntwo\n\n \nthree"})]
    for unit in units:
        with pytest.raises(DataError, match="the file is empty"):
            list(read_text(write("b.txt", "\n \n"), Reading(unit=unit)))


def test_members_of_a_zip_are_read_past_those_that_are_no_text(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("pos")
        archive.writestr("pos/a.txt", "good é")
        archive.writestr("neg/b.txt", b"\xff")
    rows, damage = salvaged(read_zip, path)
    assert rows == [{"member": "pos/a.txt", "text": "good é"}]
    assert damage == [f"{path}:neg/b.txt: byte 0xff at position 1 is not UTF-8; save the member as UTF-8"]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"set\.zip: the archive is damaged"):
        list(read_zip(path))


def test_parquet_rows_are_python_values(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": "é", "n": 1, "said": [{"role": "user", "content": "Q"}]}, {"text": "b", "n": None, "said": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_parquet(path)) == [(f"{path}:row 1", rows[0]), (f"{path}:row 2", rows[1])]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.parquet:row 1: the Parquet file is damaged"):
        list(read_parquet(path))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="the table is empty"):
        list(read_parquet(path))


def test_a_spreadsheet_is_read_without_its_blank_rows(tmp_path):
    path = tmp_path / "a.xlsx"
    book = openpyxl.Workbook()
    for row in (["x", "y"], [None, " "], ["one", 2.5], [None, None]):
        book.active.append(row)
    book.save(path)
    assert list(read_xlsx(path)) == [(f"{path}:3", {"x": "one", "y": 2.5})]
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"a\.xlsx: not a readable spreadsheet"):
        list(read_xlsx(path))


def example(**features):
    """A tf.Example message of texts and numbers."""
    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        for value in values:
            if isinstance(value, bytes):
                feature.bytes_list.value.append(value)
            else:
                feature.int64_list.value.append(value)
    return message.SerializeToString()


def write_array_records(path, messages):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for message in messages:
        writer.write(message)
    writer.close()


def test_array_records_hold_examples_or_json(tmp_path):
    path = tmp_path / "a.array_record-00000-of-00001"
    messages = [example(text=["é".encode()], n=[7], many=[1, 2], none=[]), b'{"text": "b"}']
    write_array_records(path, messages)
    assert list(read_array_record(path)) == [
        (f"{path}:record 1", {"text": "é", "n": 7, "many": [1, 2], "none": []}),
        (f"{path}:record 2", {"text": "b"}),
    ]
    write_array_records(path, [b"\xff\xff", messages[1], example(text=[b"\xff"])])
    rows, damage = salvaged(read_array_record, path)
    assert rows == [{"text": "b"}]
    assert ["record 1: neither a tf.Example nor JSON" in damage[0], "'text' is not UTF-8" in damage[1]] == [True, True]
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match="not a readable ArrayRecord file"):
        list(read_array_record(path))


def test_tfrecords_are_framed_examples(tmp_path):
    path = tmp_path / "a.tfrecord"

    def frame(message):
        return struct.pack("<QI", len(message), 0) + message + struct.pack("<I", 0)

    content = frame(example(text=[b"one"])) + frame(example(text=[b"two"]))
    path.write_bytes(content)
    assert rows_of(read_tfrecord(path)) == [{"text": "one"}, {"text": "two"}]
    path.write_bytes(content[:-6])
    with pytest.raises(DataError, match=r"a\.tfrecord:record 2: damaged here"):
        list(read_tfrecord(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'[{"a": 1}]', "json"),
        ("a.json", b'\xef\xbb\xbf{"a": 1}\n', "jsonl"),
        ("a.jsonl", b'\n [\n{"a": 1}]', "json"),
        ("a.json.gz", gzip.compress(b'{"a": 1}'), "jsonl"),
        ("rows", b'{"a": 1}', "jsonl"),
        ("a.json", b"oops", "json"),
        ("a.ndjson", b"", "jsonl"),
        ("a.txt", b'{"a": 1}', "text"),
        ("a.txt", b"[a] story", "text"),
        ("story", b"[a] story", "text"),
        ("a.csv.gz", gzip.compress(b"[1],2"), "csv"),
        ("a.tsv", b"a\tb", "tsv"),
        ("a", b"PAR1", "parquet"),
        ("a.zip", b"PK\x03\x04", "zip"),
        ("a.xlsx", b"PK\x03\x04", "xlsx"),
        ("a.tgz", tar_of([("a.txt", b"a")]), "tar"),
        ("a.array_record-00000-of-00001", b"", "arrayrecord"),
        ("c4-train.tfrecord-00000-of-00001", b"", "tfrecord"),
    ],
    # Not by content: what is compressed holds the time of day.
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else value,
)
def test_a_format_is_told_by_content_before_name(write, name, content, expected):
    assert format_of(write(name, content)) == expected
