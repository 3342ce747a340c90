from __future__ import annotations

import os
import stat

import pytest

from rlhf_jax.files import read_sealed, sha256, write_atomic, write_sealed


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
        (lambda path, seal: path.write_bytes(b"piecer"), "is damaged: it does not have the digest in a.sha256"),
        (lambda path, seal: path.write_bytes(b"piece"), "is damaged"),
        (lambda path, seal: seal.write_bytes(b"\xff"), "is damaged"),
        (lambda path, seal: seal.write_bytes(b""), "is damaged"),
        (lambda path, seal: seal.unlink(), "has no digest beside it: there is no a.sha256"),
    ],
)
def test_a_sealed_file_that_changed_is_refused(tmp_path, damage, message):
    path = tmp_path / "a"
    write_sealed(path, b"pieces")
    damage(path, tmp_path / "a.sha256")
    with pytest.raises(ValueError, match=message) as error:
        read_sealed(path)
    assert str(path) in str(error.value)
