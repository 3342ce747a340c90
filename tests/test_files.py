from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from rlhf_jax.files import check_seal, exclusive, read_sealed, sha256, write_atomic, write_sealed


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "lone surrogate: \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_file_is_written_as_utf8_and_readable_as_any_other(tmp_path):
    path, plain = tmp_path / "a.txt", tmp_path / "b.txt"
    write_atomic(path, "猫\n")
    plain.touch()
    assert path.read_bytes() == "猫\n".encode()
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_a_sealed_file_comes_back_and_its_digest_is_one_that_sha256sum_checks(tmp_path):
    path = tmp_path / "tokenizer.model"
    write_sealed(path, b"pieces")
    assert read_sealed(path) == b"pieces"
    assert path.with_name("tokenizer.model.sha256").read_text() == f"{sha256(path)}  tokenizer.model\n"
    assert sha256(path) == "b6aa423de4f79355751cdf73a26b069d5da4c248288cb8bdafc8f552f0adfc44"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path, seal: path.write_bytes(b"piecer"),
            "is damaged, or was made by other versions: its digest is not the one in a.sha256",
        ),
        (lambda path, seal: path.write_bytes(b"piece"), "is damaged"),
        (lambda path, seal: seal.write_bytes(b"\xff"), "is damaged"),
        (lambda path, seal: seal.write_bytes(b""), "is damaged"),
        (lambda path, seal: seal.unlink(), "has no digest beside it .*sha256sum a > a.sha256"),
    ],
)
def test_a_sealed_file_that_changed_is_refused(tmp_path, damage, message):
    path = tmp_path / "a"
    write_sealed(path, b"pieces")
    damage(path, tmp_path / "a.sha256")
    with pytest.raises(ValueError, match=message) as error:
        read_sealed(path)
    assert str(path) in str(error.value)


def test_one_process_at_a_time_is_in_a_directory(tmp_path):
    script = f"from pathlib import Path; from rlhf_jax.files import exclusive\nwith exclusive(Path({str(tmp_path / 'run')!r})): print('in')"
    start = [sys.executable, "-c", script]
    with exclusive(tmp_path / "run"):
        refused = subprocess.run(start, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "ValueError: another process is at work in" in refused.stderr
    assert subprocess.run(start, capture_output=True, text=True, check=True).stdout == "in\n"
    with pytest.raises(KeyError), exclusive(tmp_path / "run"):
        raise KeyError("what goes wrong inside comes out")
    assert not list((tmp_path / "run").iterdir())


def test_content_is_held_against_a_digest_that_is_there(tmp_path):
    check_seal(tmp_path / "a", b"anything")
    write_sealed(tmp_path / "a", b"pieces")
    check_seal(tmp_path / "a", b"pieces")
    with pytest.raises(ValueError, match="made by other versions"):
        check_seal(tmp_path / "a", b"other pieces")
