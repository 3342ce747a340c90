"""Files that are either the old or the new version, never half of one, and files that show when they were damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def cache_directory() -> Path:
    """Where tokenizers, data sets and compiled programs are kept between runs: RLHF_JAX_CACHE, else ~/.cache/rlhf_jax."""
    return Path(os.environ.get("RLHF_JAX_CACHE") or Path.home() / ".cache" / "rlhf_jax")


def prepared_directory() -> Path:
    """Where prepared data sets are kept, and the list of records that may not be used any more: `datasets` in the cache."""
    return cache_directory() / "datasets"


SUMS = "SHA256SUMS"
UMASK = os.umask(0)  # asked once: to ask is to change it, for all threads
os.umask(UMASK)


def write_sums(folder: Path) -> None:
    """Writes the digests of all files of a folder, as `sha256sum` does."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    write_atomic(folder / SUMS, "".join(f"{sha256(path)}  {path.name}\n" for path in files))


def check_sums(folder: Path) -> None:
    """Raises: ValueError where a file of a folder with digests is damaged or missing."""
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            raise ValueError(
                f"{path} is damaged or missing: its digest is not the one in {SUMS}; prepare the set again"
            )


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
        share(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end, or leaves nothing there; `path` must be absent or empty."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        written = Path(scratch) / path.name
        written.mkdir()
        yield written
        os.replace(written, path)  # an empty folder gives way


def share(path: Path) -> None:
    """Gives a file that was made for its owner alone, as temporary ones are, the mode of one that `open` makes."""
    os.chmod(path, 0o666 & ~UMASK)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes the bytes, or the text as UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same directory out of it, until this block or process ends, however it ends.

    Where the system or the file system has no locks, nobody is kept out. Raises: ValueError where another process is in it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is at work in {directory}; wait for it, or choose another"
                ) from error
        yield
    finally:
        os.close(handle)


def link_or_copy(source: str, target: str) -> None:
    """Makes one file another name for what is in a file that nobody changes in place, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
        raise ValueError(
            f"{path} has no digest beside it (if you trust it: sha256sum {path.name} > {seal.name}, there)"
        )
    check_seal(path, content)
    return content


def check_seal(path: Path, content: bytes) -> None:
    """Raises: ValueError where there is a digest beside this path, and it is not that of the content."""
    seal = _seal_of(path)
    if seal.is_file() and seal.read_bytes().split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise ValueError(f"{path} is damaged, or was made by other versions: its digest is not the one in {seal.name}")


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
