"""Records of tf.Example messages or of JSON, in ArrayRecord or TFRecord files; TensorFlow is not needed for either."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.readers.lines import as_object
from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row

AT_ONCE = 1024  # records that are fetched together
AGAIN = "fetch the file again"


def read_array_record(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """("FILE:record N", field -> value) for every record, counted from 1.

    A feature of one value is that value, one of several a list; bytes are UTF-8. Damage: a file that does not open, records that are
    neither a tf.Example nor a JSON object, a file without records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader: Any = ArrayRecordReader(str(path))
        count = reader.num_records()
        if not count:
            reader.close()  # says what is wrong with the file, where something is
    except RuntimeError as error:
        how.damaged(DataError(str(path), f"not a readable ArrayRecord file ({error})", AGAIN))
        return

    def messages() -> Iterator[bytes]:
        for start in range(0, count, AT_ONCE):
            yield from reader.read(list(range(start, min(start + AT_ONCE, count))))

    yield from _rows(path, messages(), how, RuntimeError)


def read_tfrecord(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """The same for TFRecord files."""
    from grain.experimental import TFRecordIterDataset

    yield from _rows(path, iter(TFRecordIterDataset(str(path))), how, ValueError)


def _rows(
    path: Path, messages: Iterator[bytes], how: Reading, unreadable: type[Exception]
) -> Iterator[tuple[str, Row]]:
    number = 0
    while True:
        number += 1
        place = f"{path}:record {number}"
        try:
            message = next(messages)
        except StopIteration:
            break
        except unreadable as error:
            reason, remedy = f"damaged here ({error})", f"only the {number - 1} records before it can be read; {AGAIN}"
            how.damaged(DataError(place, reason, remedy))
            return
        try:
            row = _row(message, place)
        except DataError as error:
            how.damaged(error)
        else:
            yield place, row
    if number == 1:
        how.damaged(DataError(str(path), "no records", "expected at least one"))


def _row(message: bytes, place: str) -> Row:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    if message.lstrip()[:1] == b"{":
        try:
            return as_object(json.loads(message), place)
        except ValueError as error:
            raise DataError(place, f"malformed JSON ({error})", "expected a JSON object") from error
    protos: Any = tf_example_pb2
    try:
        example = protos.Example.FromString(message)
    except DecodeError as error:
        raise DataError(place, "neither a tf.Example nor JSON", "expected one of them") from error
    return {name: _value(feature, name, place) for name, feature in sorted(example.features.feature.items())}


def _value(feature: Any, name: str, place: str) -> Any:
    kind = feature.WhichOneof("kind")
    values: Sequence[Any] = getattr(feature, kind).value if kind is not None else ()
    if kind == "bytes_list":
        try:
            values = [value.decode("utf-8") for value in values]
        except UnicodeDecodeError as error:
            raise DataError(place, f"field {name!r} is not UTF-8", "expected text") from error
    return values[0] if len(values) == 1 else list(values)
