"""The records of Parquet and Arrow files, as those of JSON; needs `pyarrow`, of the extra `data`.

Rows are read in small batches. A list of structs (messages) is a list of objects. A field that is null is left out, because these
formats have no other way to say that it is missing. Values that JSON lacks: dates and times are text in ISO 8601, decimals are text
with all their digits, bytes are text if they are UTF-8 and otherwise {"bytes": their number}.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import open_regular
from mini_chat_gpt.data.json_records import BadRecord, Record

SIGNATURES = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow"}
"""First bytes -> kind. The last are those of a stream of record batches, which `datasets` writes."""
_ROWS = 64  # that are in memory as Python values


def kind_of(path: Path) -> str | None:
    """ "Parquet" or "Arrow", by the first bytes of a file; None for others. Raises OSError."""
    with open(path, "rb", opener=open_regular) as file:
        start = file.read(6)
    return next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), None)


def read_rows(path: Path, kind: str) -> Iterator[tuple[str, Record | BadRecord]]:
    """("record 1", {column: value}) and so on. Raises UserError for a damaged file, and if pyarrow is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{path} is {'a Parquet' if kind == 'Parquet' else 'an Arrow'} file; install the library that reads it: "
            'pip install "mini-chat-gpt[data]".'
        ) from None
    number = 0
    try:
        for batch in _parquet(path) if kind == "Parquet" else _arrow(path):
            # Damaged offsets would make pyarrow read outside of its buffers, which can end the process.
            batch.validate(full=True)
            if repeated := {name for name in batch.schema.names if batch.schema.names.count(name) > 1}:
                raise UserError(f"{path} has several columns named {min(repeated)}; rename or remove one.")
            for row in _rows(_without_times(batch)):
                number += 1
                yield f"record {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        # pyarrow's errors are subclasses of several of Python's.
        after = f" after record {number:,}" if number else ""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is a damaged {kind} file ({reason}){after}; get it again.") from None


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    # Without pre_buffer and with a buffer, a column is read page by page instead of a row group at a time.
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as file:
        yield from file.iter_batches(_ROWS, use_threads=False)


def _arrow(path: Path) -> Iterator[Any]:
    """The batches of a file or a stream, each in slices."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            batch.validate(full=True)  # the slices would each check the whole
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _without_times(batch: Any) -> Any:
    """Columns of dates and times as text, by Arrow itself: Python has no year 10,000, and no nanoseconds."""
    import pyarrow

    for at, field in enumerate(batch.schema):
        if pyarrow.types.is_temporal(field.type):
            column = batch.column(at)
            try:
                column = column.cast(pyarrow.string())
            except pyarrow.ArrowException:  # durations, and times in a zone that this machine does not know
                column = column.cast(pyarrow.int64())
            batch = batch.set_column(at, field.name, column)
    return batch


def _rows(batch: Any) -> Iterator[Record | BadRecord]:
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError, NotImplementedError, ImportError):  # a value that Python lacks
        if batch.num_rows > 1:
            for at in range(batch.num_rows):
                yield from _rows(batch.slice(at, 1))
            return
        rows = [BadRecord("it has a value that can't be read, such as a date after the year 9999")]
    yield from (row if isinstance(row, BadRecord) else _plain(row) for row in rows)


def _plain(value: Any) -> Any:
    """The value as JSON has it, with fields that are null left out."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"bytes": len(value)}
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return str(value)
