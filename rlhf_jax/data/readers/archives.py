"""Archives of text files, one text to a file: tar, plain or compressed, and zip."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.data.readers.lines import not_utf8, open_bytes
from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row

AGAIN = "fetch the file again"


def read_tar(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(FILE:MEMBER, {"member": its path, "text": its content}) for every file of a tar archive, in the archive's order.

    Damage: members that are not UTF-8; an archive that breaks, behind which nothing can be read; one without files.
    """
    members, place = 0, str(path)
    with open_bytes(path) as stream:
        try:
            # The stream mode reads front to back once: an archive of many thousand small files is never seeked in.
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    place = f"{path}:{member.name}"
                    content = archive.extractfile(member)
                    if content is not None:
                        members += 1
                        yield from _member(place, member.name, content.read(), how)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            how.damaged(DataError(place, f"the archive is damaged here ({error})", AGAIN))
            return
    if not members:
        how.damaged(_no_files(path))


def read_zip(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """The same for a zip archive. Damage: members that are not UTF-8 or do not unpack; an archive that does not open; one without files."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        how.damaged(DataError(str(path), f"the archive is damaged ({error})", AGAIN))
        return
    with archive:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        for name in names:
            place = f"{path}:{name}"
            try:
                content = archive.read(name)
            except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
                how.damaged(DataError(place, f"the member does not unpack ({error})", AGAIN))
            else:
                yield from _member(place, name, content, how)
    if not names:
        how.damaged(_no_files(path))


def _member(place: str, name: str, content: bytes, how: Reading) -> Iterator[tuple[str, Row]]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        how.damaged(DataError(place, not_utf8(error), "save the member as UTF-8"))
    else:
        yield place, {"member": name, "text": text}


def _no_files(path: Path) -> DataError:
    return DataError(str(path), "the archive holds no files", "expected one text file per example")
