"""Labels of the films, from their folders or from a CSV or Parquet file; in memory, joined by path or URI."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from models.messages import first_line
from pipelines.contracts import LABELS
from pipelines.errors import InputError
from pipelines.ingest.patients import kermany_patient, kermany_subtype
from pipelines.splits import SPLITS
from pipelines.storage import open_store, read_object

_SPELLINGS = {"normal": "NORMAL", "pneumonia": "PNEUMONIA", "0": "NORMAL", "1": "PNEUMONIA"}


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is known of one film."""

    label: str | None = None
    """One of contracts.LABELS."""
    subtype: str | None = None
    patient_id: str | None = field(default=None, repr=False)
    split: str | None = None
    """The split given by the archive itself, one of pipelines.splits.SPLITS."""
    site: str | None = None
    line: int | None = None
    """Line number in the CSV file, or number of the row in the Parquet file."""


def label_from_path(key: str) -> Label:
    """Kaggle's layout: `…/train|val|test/NORMAL|PNEUMONIA/name`, with file names as in Kermany's set."""
    folders = [part.lower() for part in PurePosixPath(key).parts[:-1]]
    label = next((part.upper() for part in reversed(folders) if part.upper() in LABELS), None)
    split = next((part for part in reversed(folders) if part in SPLITS), None)
    return Label(label=label, subtype=kermany_subtype(key), patient_id=kermany_patient(key), split=split)


def labels_from_file(uri: str, archive: str) -> dict[str, Label]:
    """Labels by URI from a CSV or Parquet file with a column `path` (below the archive) or `uri`, and a column `label`.

    Columns `subtype`, `patient_id`, `split` and `site` are optional. A label is NORMAL, PNEUMONIA,
    0 or 1; an empty one leaves the film unlabelled. Raises `InputError` naming the line.
    """
    store = open_store(archive)
    labels: dict[str, Label] = {}
    word = line_word(uri)
    for line, row in _parquet_rows(uri) if word == "row" else _rows(uri):
        where = f"{uri}, {word} {line}"
        film = row.get("uri") or store.uri((row.get("path") or "").lstrip("/"))
        if film == store.root:
            raise InputError(f"{where}: names no film; fill in `path` or `uri`")
        if film in labels:
            raise InputError(f"{where}: this film already has a line; keep one")
        labels[film] = replace(_label(row, where), line=line)
    return labels


def line_word(uri: str) -> str:
    """What the lines of a file of labels are called: `row` in Parquet, else `line`."""
    return "row" if uri.lower().endswith(".parquet") else "line"


def _rows(uri: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line numbers and rows below the header. No message quotes a cell: a misplaced one may hold a patient's name."""
    rows = csv.DictReader(io.StringIO(_text(uri), newline=""))
    try:
        columns = set(rows.fieldnames or ())
        if "label" not in columns or not columns & {"path", "uri"}:
            raise InputError(
                f"{uri}, line 1: the header needs the columns `path` (or `uri`) and `label`, separated by commas"
            )
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{uri}, line {rows.line_num}: {error}; is a quote not closed?") from error


def _parquet_rows(uri: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Numbers of rows, from 1 on, and rows, all values as text."""
    known = ("path", "uri", "label", "subtype", "patient_id", "split", "site")
    try:
        with pq.ParquetFile(io.BytesIO(read_object(uri))) as file:
            columns = [name for name in known if name in file.schema_arrow.names]
            if "label" not in columns or not {"path", "uri"} & set(columns):
                raise InputError(f"{uri}: the table needs the columns `path` (or `uri`) and `label`")
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: None if value is None else _plain(value) for name, value in row.items()}
    except pa.ArrowException as error:
        raise InputError(f"{uri}: no Parquet file that can be read: {first_line(error)}") from error


def _plain(value: object) -> str:
    """As a CSV file would have it: a label or an id that pandas made a float or a truth value is a number again."""
    if isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(uri: str) -> str:
    try:
        return read_object(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 text; save it as UTF-8") from error


def _label(row: Mapping[str, str | None], where: str) -> Label:
    given = {name: (value or "").strip() or None for name, value in row.items() if isinstance(name, str)}
    text = given.get("label")
    if text is not None and text.lower() not in _SPELLINGS:
        raise InputError(f"{where}: the label is none of NORMAL, PNEUMONIA, 0, 1")
    split = given.get("split")
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: the split is none of {', '.join(SPLITS)}")
    return Label(
        label=_SPELLINGS[text.lower()] if text else None,
        subtype=given.get("subtype"),
        patient_id=given.get("patient_id"),
        split=split,
        site=given.get("site"),
    )
