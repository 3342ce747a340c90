from __future__ import annotations

import os
import stat

import pytest

from rlhf_jax.report.files import write_atomic


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
