import gzip
import io
import json
import tarfile

import pytest

from rlhf_jax.data.readers import DataError, read_json, read_jsonl, read_lines, read_text_members, read_tsv


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
    assert list(read_lines(path)) == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]


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


@pytest.mark.parametrize("read", [read_jsonl, read_json, read_lines, read_tsv])
def test_invalid_utf8_is_named_by_line_and_byte(write, read):
    path = write("latin1.txt", b'{"a": "x"}\n{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin1\.txt:2: byte 0xe9 at position 11 is not UTF-8"):
        list(read(path))


@pytest.mark.parametrize("read", [read_jsonl, read_json, read_lines, read_tsv])
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
    assert rows_of(read_tsv(path, columns=("x", "y"))) == [{"x": 'a "quoted', "y": "b"}]
    with pytest.raises(DataError, match=r"a\.tsv:1: 2 tab-separated columns; expected 3: x, y, z"):
        list(read_tsv(path, columns=("x", "y", "z")))
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
        assert list(read_text_members(path)) == expected


def test_a_damaged_archive_is_an_error_that_names_the_place(write):
    whole = tar_of([(f"pos/{i}.txt", bytes(range(32, 127)) * 20) for i in range(200)], compressed=False)
    with pytest.raises(DataError, match=r"cut\.tar:pos/\d+\.txt: the archive is damaged"):
        list(read_text_members(write("cut.tar", whole[: len(whole) // 2 + 700])))
    packed = gzip.compress(whole)
    with pytest.raises(DataError, match="damaged"):
        list(read_text_members(write("cut.tar.gz", packed[: len(packed) // 2])))
    with pytest.raises(DataError, match=r"pos/a\.txt: byte 0xff at position 1 is not UTF-8"):
        list(read_text_members(write("bytes.tar.gz", tar_of([("pos/a.txt", b"\xff")]))))
    with pytest.raises(DataError, match="no files"):
        list(read_text_members(write("none.tar.gz", tar_of([]))))


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
