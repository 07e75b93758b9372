"""Labels of the films, from their folders or from a CSV file; in memory, joined to the listing by path or URI."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

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
    """Line number in the CSV file."""


def label_from_path(key: str) -> Label:
    """Kaggle's layout: `…/train|val|test/NORMAL|PNEUMONIA/name`, with file names as in Kermany's set."""
    folders = [part.lower() for part in PurePosixPath(key).parts[:-1]]
    label = next((part.upper() for part in reversed(folders) if part.upper() in LABELS), None)
    split = next((part for part in reversed(folders) if part in SPLITS), None)
    return Label(label=label, subtype=kermany_subtype(key), patient_id=kermany_patient(key), split=split)


def labels_from_csv(uri: str, archive: str) -> dict[str, Label]:
    """Labels by URI from a CSV file with a column `path` (below the archive) or `uri`, and a column `label`.

    Columns `subtype`, `patient_id`, `split` and `site` are optional. A label is NORMAL, PNEUMONIA,
    0 or 1; an empty one leaves the film unlabelled. Raises `InputError` naming the line.
    """
    store = open_store(archive)
    labels: dict[str, Label] = {}
    for line, row in _rows(uri):
        where = f"{uri}, line {line}"
        film = row.get("uri") or store.uri((row.get("path") or "").lstrip("/"))
        if film == store.root:
            raise InputError(f"{where}: names no film; fill in `path` or `uri`")
        if film in labels:
            raise InputError(f"{where}: this film already has a line; keep one")
        labels[film] = replace(_label(row, where), line=line)
    return labels


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
