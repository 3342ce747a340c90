"""Files that are either the old or the new version, never half of one, and files that show when they were damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the place of `path` at the end: a reader, or a crash at any moment, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a report is to be shown, as any file that `open` makes.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes the bytes, or the text as UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sha256(path: Path) -> str:
    """The digest of a file, which may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sealed(path: Path, content: bytes) -> None:
    """Writes the file with its digest beside it in PATH.sha256, as `sha256sum` does."""
    # The digest first: a file of ours without one was not finished, or has lost it.
    write_atomic(_seal_of(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    write_atomic(path, content)


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote. Raises: ValueError where the file, or its digest, is not that any more."""
    content, seal = path.read_bytes(), _seal_of(path)
    if not seal.is_file():
        raise ValueError(f"{path} has no digest beside it: there is no {seal.name}")
    if seal.read_bytes().split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise ValueError(f"{path} is damaged: it does not have the digest in {seal.name}")
    return content


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
