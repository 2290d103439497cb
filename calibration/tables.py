"""Tables of texts: CSV, TSV, JSON Lines and Parquet files as rows of named values."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tlc.calibration.archive import MAX_FILE_BYTES
from tlc.runtime.errors import TlcError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF8_HINT = "Save the file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 FILE."


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    key: str
    """File and line where the row starts, `train.csv:12`; in Parquet the row's number from 1."""
    values: dict[str, object]
    """By column; None where there is no value."""


@dataclass(slots=True)
class Table:
    """The rows of one file, in its order."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """`key: reason` of each row that cannot be read."""


def read_table(name: str, data: bytes) -> Table:
    """Return the table in `data`, the bytes of a file called `name`, by its suffix, one of `TABLE_SUFFIXES`.

    CSV is RFC 4180 with commas, TSV has one row a line; both begin with a row of column names, and blank lines are no
    rows. Text is UTF-8, with or without a byte order mark. Rows that cannot be read are in `bad`.

    Raises TlcError for a file that is not such a table.
    """
    suffix = name[name.rfind(".") :].lower()
    if suffix == ".parquet":
        table = _parquet(name, data)
    elif data.startswith(_UTF16):
        raise TlcError(f"{name} is encoded as UTF-16, not as UTF-8", hint=_UTF8_HINT)
    elif suffix in (".jsonl", ".ndjson"):
        table = _json_lines(name, data.removeprefix(codecs.BOM_UTF8))
    else:
        table = _delimited(name, data.removeprefix(codecs.BOM_UTF8), ("," if suffix == ".csv" else "\t"))
    if not table.rows and not table.bad:
        raise TlcError(f"{name} has no rows", hint="Give a file with at least one row of text.")
    return table


def text_lines(name: str, data: bytes) -> list[str]:
    """Return the lines of a text file that are not blank. Raises TlcError when it is not UTF-8."""
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TlcError(f"{name}:{line}: {not_utf8(error)}", hint=_UTF8_HINT) from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return the reason in words, with the byte that is wrong."""
    return f"byte 0x{error.object[error.start]:02X} is not UTF-8"


def _delimited(name: str, data: bytes, delimiter: str) -> Table:
    # Bytes that are not UTF-8 become lone surrogates here, so that the rows that have them can be named.
    text = data.decode(errors="surrogateescape")
    rows = _csv_rows(text) if delimiter == "," else _tsv_rows(text)
    first = next(rows, None)
    if first is None:
        raise TlcError(f"{name} is empty", hint="Give a file with a row of column names and rows of text.")
    columns = tuple(cell.strip() for cell in first[1]) if isinstance(first[1], list) else ()
    _require_columns(name, columns, delimiter)
    table = Table(name, columns)
    for line, cells in rows:
        key = f"{name}:{line}"
        if isinstance(cells, str):
            table.bad.append(f"{key}: {cells}")
        elif len(cells) != len(columns):
            table.bad.append(f"{key}: {len(cells)} fields where the first row has {len(columns)}")
        elif reason := _escaped_byte(cells):
            table.bad.append(f"{key}: {reason}")
        else:
            table.rows.append(Row(key, dict(zip(columns, cells, strict=True))))
    return table


def _csv_rows(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line, fields, or the reason why there are none) of each row that is not blank."""
    before = csv.field_size_limit(MAX_FILE_BYTES)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                upto = f", up to line {reader.line_num}" if reader.line_num > line else ""
                yield line, f"quotation marks do not match ({error}{upto})"
                continue
            if len(cells) > 1 or "".join(cells).strip():
                yield line, cells
    finally:
        csv.field_size_limit(before)


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line, fields) of each line that is not blank; a field in quotation marks is unquoted as in CSV."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip(" \r"):
            yield number, [_unquoted(cell) for cell in line.rstrip("\r").split("\t")]


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "") if len(cell) > 1 and cell[0] == cell[-1] == '"' else '"'
    return cell if '"' in inner else cell[1:-1].replace('""', '"')


def _escaped_byte(cells: list[str]) -> str:
    """Return why the fields are not text, or an empty string."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return f"byte 0x{ord(error.object[error.start]) - 0xDC00:02X} is not UTF-8"
    return ""


def _require_columns(name: str, columns: tuple[str, ...], delimiter: str) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if not columns or repeated or _escaped_byte(list(columns)):
        what = f"names column {repeated[0]!r} twice" if repeated else "is not a row of column names in UTF-8"
        raise TlcError(f"{name}: the first row {what}", hint="Begin the file with one name for each column.")
    other = next((mark for mark in (";", "\t", ",") if mark != delimiter and mark in columns[0]), None)
    if len(columns) == 1 and other:
        raise TlcError(
            f"{name}: the first row {columns[0]!r} has no {delimiter!r} but {other!r}",
            hint="Separate the columns by commas in .csv, by tabs in .tsv.",
        )


def _json_lines(name: str, data: bytes) -> Table:
    rows, bad = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        key = f"{name}:{number}"
        try:
            values = json.loads(line.decode())
        except UnicodeDecodeError as error:
            bad.append(f"{key}: {not_utf8(error)}")
        except (ValueError, RecursionError) as error:
            bad.append(f"{key}: not JSON ({error})")
        else:
            if isinstance(values, dict):
                rows.append(Row(key, values))
            else:
                bad.append(f"{key}: not a JSON object with a value for each column")
    if bad and not rows:
        raise TlcError(
            f"{name} is not JSON Lines, the first of {len(bad):,} lines: {bad[0]}",
            hint='Write one object a line: {"text": "...", "label": "..."}.',
        )
    return Table(name, tuple(dict.fromkeys(column for row in rows for column in row.values)), rows, bad)


def _parquet(name: str, data: bytes) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise TlcError(
            f"{name} is Parquet, and pyarrow, which reads it, is not installed", hint="Run: pip install 'tlc[text]'."
        ) from error
    try:
        content = parquet.read_table(io.BytesIO(data))
        values = content.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TlcError(f"{name} cannot be read as Parquet: {error}", hint="Download or write it again.") from error
    return Table(name, tuple(content.column_names), [Row(f"{name}:{i}", row) for i, row in enumerate(values, start=1)])
