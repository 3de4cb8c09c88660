"""Tables as people have them, data frames, columns or rows, as rows of JSON values."""

import datetime
import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Sized
from decimal import Decimal
from itertools import islice
from typing import Any

import msgspec

from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.journal import MAX_PAYLOAD_BYTES
from opusclip_mlops.tables import MOST_ROWS

_MISSING = ("NAType", "NaTType")  # what pandas has where nothing is
_AS_THEY_ARE = (bool, type(None))
_MOST_WHOLE = 2**63
_DEEPEST = 32
_ESCAPED = 3  # times as long as UTF-8 a text may become in JSON of ASCII alone


def table_of(data: Any, columns: Sequence[str] | None = None) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a table.

    Args:
        data: a pandas data frame, a mapping of columns to values, or rows: mappings by column, or
            sequences in the order of `columns`.
        columns: their names and order; of a frame or mappings, those that are kept.

    Raises:
        RecordError: no table, rows of unlike lengths, a cell that is no JSON value (row and column
            are named), more than 10,000 rows, or more than 64 MiB.
    """
    names, rows = _read(data, columns)
    if len(set(names)) < len(names) or not names:
        raise RecordError(f"a table has one or more columns, each once, not {names!r:.120}")
    for at, row in enumerate(rows):
        if len(row) != len(names):
            raise RecordError(f"row {at} has {len(row)} cells for {len(names)} columns")
    plain_rows = [
        [_cell(cell, at, name) for name, cell in zip(names, row, strict=True)]
        for at, row in enumerate(rows)
    ]
    _check_size(names, plain_rows)
    return names, plain_rows


def _read(data: Any, columns: Sequence[str] | None) -> tuple[list[str], list[list[Any]]]:
    if columns is not None:
        columns = _names(columns)
    is_frame = hasattr(data, "itertuples") and hasattr(data, "columns")
    if is_frame and not isinstance(data, type):
        _check_count(len(data))
        found = [_text(name) for name in data.columns]
        return _chosen(found, [list(row) for row in data.itertuples(index=False)], columns)
    if isinstance(data, Mapping):
        return _chosen([_text(name) for name in data], _by_row(data), columns)
    if isinstance(data, str | bytes | type) or not isinstance(data, Iterable):
        raise RecordTypeError(
            f"a table cannot be made from {type(data).__name__}: pass a data frame, a mapping of"
            " columns, or rows"
        )
    rows = _within(data)
    if rows and all(isinstance(row, Mapping) for row in rows):
        found = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name) for name in found] for row in rows]
        return _chosen([_text(name) for name in found], cells, columns)
    if columns is None:
        raise RecordError("rows have no names for their columns: pass columns=")
    return list(columns), [_row(row, at, len(columns)) for at, row in enumerate(rows)]


def _names(columns: Any) -> list[str]:
    """The names of columns, which may come from an iterator."""
    if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
        raise RecordTypeError(f"columns must be a list of names, not {columns!r:.40}")
    return [_text(name) for name in _within(columns)]


def _within(values: Iterable[Any]) -> list[Any]:
    """All of them; more than are kept, or without an end, are not gone through."""
    if isinstance(values, Sized):
        _check_count(len(values))
    found = list(islice(values, MOST_ROWS + 1))
    _check_count(len(found), "more than ")
    return found


def _check_count(count: int, least: str = "") -> None:
    if count > MOST_ROWS:
        rows = f"{least}{MOST_ROWS if least else count:,} rows"
        raise RecordError(f"the table has {rows}: at most {MOST_ROWS:,} are kept")


def _row(row: Any, at: int, count: int) -> list[Any]:
    if isinstance(row, str | bytes | Mapping) or not isinstance(row, Iterable):
        raise RecordTypeError(f"row {at} is {type(row).__name__}: pass a list of its cells")
    cells = list(islice(row, count + 1))
    if len(cells) > count:
        raise RecordError(f"row {at} has more than {count} cells: columns= names {count}")
    return cells


def _by_row(data: Mapping[Any, Any]) -> list[list[Any]]:
    """The rows of a mapping of columns."""
    for name, values in data.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise RecordTypeError(
                f"column {name!r:.40} must be a list, not {type(values).__name__}"
            )
    found = {name: _cells(values) for name, values in data.items()}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise RecordError(f"the columns differ in length: {lengths!r:.120}")
    return [list(row) for row in zip(*found.values(), strict=True)]


def _cells(values: Iterable[Any]) -> list[Any]:
    """The cells of a column; those of an array of numbers at once, as Python's own."""
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    is_row = kind in ("b", "i", "u", "f") and getattr(values, "ndim", 0) == 1
    if not is_row:
        return _within(values)
    _check_count(len(values))  # type: ignore[arg-type]
    return values.tolist()  # type: ignore[attr-defined,no-any-return]


def _chosen(
    found: list[str], rows: list[list[Any]], columns: Sequence[str] | None
) -> tuple[list[str], list[list[Any]]]:
    """The columns that are asked for, in their order."""
    if columns is None:
        return found, rows
    if unknown := [name for name in columns if name not in found]:
        raise RecordError(f"the table has no column {unknown[0]!r:.40}, but {found!r:.120}")
    places = [found.index(name) for name in columns]
    return list(columns), [[row[place] for place in places] for row in rows]


def _cell(value: Any, row: int, column: str) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise RecordError(f"the cell in row {row} of column {column!r:.40} {error}") from None


def plain(value: Any, *, depth: int = 0) -> Any:
    """A value as JSON holds it: NumPy's numbers as Python's, NaN as "nan", times as ISO 8601.

    Half characters, which UTF-8 has not, become `\\udc80`, as in every record.

    Raises:
        TypeError: JSON has nothing for it.
        ValueError: a whole number beyond 64 bits, or lists in lists in lists without an end.
    """
    if type(value) in _AS_THEY_ARE or (type(value) is float and math.isfinite(value)):
        return value
    if depth > _DEEPEST:
        raise ValueError(f"has lists in lists, deeper than {_DEEPEST}")
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, numbers.Real | Decimal):
        return _number(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if getattr(value, "shape", None) == ():
        is_time = getattr(value.dtype, "kind", "") in ("M", "m")
        return str(value) if is_time else plain(value.item(), depth=depth + 1)
    if isinstance(value, Mapping):
        return {_text(name): plain(one, depth=depth + 1) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, depth=depth + 1) for one in value]
    raise TypeError(f"is {type(value).__name__}, no JSON value{_advice(value)}")


def _text(value: Any) -> str:
    text = str(value)
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _number(value: Any) -> int | float | str:
    if isinstance(value, numbers.Integral):
        whole = int(value)
        if not -_MOST_WHOLE <= whole < _MOST_WHOLE:
            raise ValueError("is a whole number beyond 64 bits: pass it as a text")
        return whole
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _advice(value: Any) -> str:
    if hasattr(value, "convert") and hasattr(value, "mode"):
        return ": log pictures with log_figure"
    if hasattr(value, "tolist"):
        return ": pass value.tolist(), or log a picture with log_figure"
    return ": pass a text or a number"


def _check_size(names: list[str], rows: list[list[Any]]) -> None:
    size_bytes = len(msgspec.json.encode(rows))
    if _ESCAPED * size_bytes > MAX_PAYLOAD_BYTES:
        size_bytes = len(json.dumps({"columns": names, "data": rows}))
    if size_bytes > MAX_PAYLOAD_BYTES:
        size = f"{size_bytes:,} bytes: at most {MAX_PAYLOAD_BYTES:,} are kept"
        raise RecordError(f"the table has {size}, so leave rows or columns out")
