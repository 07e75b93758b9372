"""The catalogue: one row per scan of an archive, with its label and split if known.

    CATALOG/<token>-00000.parquet   rows of contracts.CATALOG
    CATALOG/inspected-….parquet     with --inspect: what was found of each version of a file, for the next time
    CATALOG/catalog.json            written last: names the parts; a folder without it is not a catalogue

Without labels the listing is streamed, and memory stays bounded whatever the size of the archive. With labels all rows
are held at once: a patient's films must be seen together to go into one split.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts import CATALOG
from pipelines.decoding.version import DECODER_VERSION
from pipelines.errors import InputError
from pipelines.ingest.catalog_info import MANIFEST, CatalogSettings, catalog_manifest, catalog_parts, is_catalog
from pipelines.ingest.inspect import TOLD, inspect, read_inspected, write_inspected
from pipelines.ingest.inventory import inventory_objects
from pipelines.ingest.labels import Label, label_from_path, labels_from_file, line_word
from pipelines.ingest.listing import Listing
from pipelines.ingest.patients import PatientKeys, People
from pipelines.ingest.split import assign_splits
from pipelines.stop import Stop, never
from pipelines.storage import Store, open_store

__all__ = [
    "MANIFEST",
    "CatalogSettings",
    "CatalogSummary",
    "build_catalog",
    "is_catalog",
    "read_catalog",
    "stream_catalog",
]

ROWS_PER_PART = 500_000
ROWS_PER_TABLE = 65_536
DEFAULT_TEST_FRACTION = 0.15
MOST_UNKNOWN = 0.2
"""Share of the labelled films whose patients may be unknown."""

Row = dict[str, Any]

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class CatalogSummary:
    """What a catalogue holds."""

    catalog: str
    scans: int
    ignored: int
    """Files that are not listed as scans."""
    ignored_by: Mapping[str, Mapping[str, Any]]
    """Kind of `pipelines/ingest/ignored.py` -> how many, and an example: names that are no scans, and what cannot be
    listed or addressed."""
    bytes: int
    formats: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, dict[str, int]]
    """Split -> label -> films."""
    patients: int | None
    """Known patients; None if nothing identifies patients."""
    placeholder_ids: int | None
    """Films whose patient id is a placeholder (0, ANON) or stands on an absurd share of the films: their patients count
    as unknown. None if nobody looked."""
    read_again: int | None
    """Files that were opened; the others were inspected for the catalogue that lay here before. None: no --inspect."""
    problems: dict[str, int] | None
    """Files that cannot be read, by reason; None without --inspect."""


def build_catalog(archive: str, out: str, settings: CatalogSettings, stop: Stop | None = None) -> CatalogSummary:
    """List an archive into a catalogue; `stop` ends it early, and then no catalogue is left.

    With `settings.inspect` Ray is already initialised; files that were inspected for the catalogue at `out` are not
    read again.
    Raises `InputError` if the archive or the labels are unusable: nothing to list, or a label without a file;
    `StorageError` if files could not be inspected because the store failed.
    """
    stop = stop or never()
    listing = _listing(archive, settings, stop)
    labelled = settings.labels is not None
    store = open_store(out)
    work = _Work(settings, store, stop) if labelled or settings.inspect else None
    tables: Iterable[pa.Table] = listing
    if labelled:
        whole = list(listing)
        if not whole:
            raise _nothing_in(listing)
        tables = [pa.concat_tables(whole)]
    elif settings.inspect:
        tables = _rounds(listing)
    if work:
        tables = (work.finished(table, archive) for table in tables)
    counter = _Counter()
    parts = list(_write_parts(store, counter.counted(tables)))
    if counter.scans == 0:
        raise _nothing_in(listing)
    stop.check()
    summary = CatalogSummary(
        catalog=store.root,
        ignored=listing.ignored.total,
        ignored_by=listing.ignored.account(),
        placeholder_ids=work.people.placeholders if work else None,
        read_again=work.read if work and settings.inspect else None,
        **counter.totals(labelled=labelled, inspected=settings.inspect),
    )
    manifest = {
        "source": listing.store.root,
        "whole": not (settings.filters or settings.inventory or listing.ignored.hides_files),
        "settings": asdict(settings),
        "summary": asdict(summary),
        "inspected": work.kept() if work else None,
    }
    _commit(store, manifest, parts)
    return summary


def _rounds(listing: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of about ROWS_PER_PART: each is one piece of work for Ray."""
    waiting: list[pa.Table] = []
    for table in listing:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROWS_PER_PART:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _listing(archive: str, settings: CatalogSettings, stop: Stop) -> Listing:
    store = open_store(archive)
    listing = Listing(store, settings.site, stop, settings.filters)
    if settings.inventory:
        listing.objects = inventory_objects(settings.inventory, store, listing.ignored)
    return listing


def _nothing_in(listing: Listing) -> InputError:
    return InputError(f"{listing.store.root}: no scans here ({listing.ignored.total} other files); check the path")


def read_catalog(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a catalogue, contracts.CATALOG. Raises `InputError` if there is none."""
    store = open_store(uri)
    tables = [pq.read_table(pa.BufferReader(store.get(part)), columns=columns) for part in catalog_parts(store)]
    return pa.concat_tables(tables)


def stream_catalog(uri: str, columns: list[str]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_PER_TABLE, so that no more than one part is in memory."""
    store = open_store(uri)
    for part in catalog_parts(store):
        with pq.ParquetFile(pa.BufferReader(store.get(part))) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_TABLE, columns=columns):
                yield pa.Table.from_batches([batch]).select(columns)


def _labels(rows: list[Row], archive: str, settings: CatalogSettings) -> dict[str, Label]:
    """Labels by URI. A CSV line without a file is an error: the film may have been lost."""
    if settings.labels is None or settings.labels == "path":
        root = open_store(archive).root
        return {row["uri"]: label_from_path(row["uri"].removeprefix(root)) for row in rows}
    labels = labels_from_file(settings.labels, archive)
    absent = labels.keys() - {row["uri"] for row in rows}
    if absent:
        line, first = min((labels[uri].line or 0, uri) for uri in absent)
        raise InputError(
            f"{settings.labels}, {line_word(settings.labels)} {line}: {first} is not in the archive"
            f" ({len(absent)} such lines); mend the path or take the line out"
        )
    return labels


class _Work:
    """Fills in what labels and, with --inspect, the files themselves tell."""

    def __init__(self, settings: CatalogSettings, store: Store, stop: Stop) -> None:
        self.settings = settings
        self.store = store
        self.stop = stop
        self.people = People(PatientKeys.from_environment())
        self.read = 0
        """Files that were opened."""
        self._kept: list[str] = []
        known = read_inspected(store, catalog_manifest(store)) if settings.inspect and is_catalog(store.root) else None
        self._known = known.usable(self.people.keys) if known else None

    def finished(self, table: pa.Table, archive: str) -> pa.Table:
        """The rows with all that is known of them."""
        self.stop.check()
        rows: list[Row] = table.to_pylist()
        labels = _labels(rows, archive, self.settings) if self.settings.labels else {}
        for row in rows:
            if (label := labels.get(row["uri"])) is not None:
                row |= {"label": label.label, "subtype": label.subtype, "site": label.site or row["site"]}
        # For the patient a table of labels is trusted more than a header, and a header more than a file name.
        if self.settings.labels == "path":
            _name(rows, labels, self.people)
        if self.settings.inspect:
            self._inspect(rows)
        if self.settings.labels != "path":
            _name(rows, labels, self.people)
        self.people.drop_shared([row["uri"] for row in rows])
        if self.settings.labels is not None:
            _assign_splits(rows, labels, self.people, self.settings)
        for row in rows:
            if patient := self.people.of.get(row["uri"]):
                row["patient_key"] = patient.key
        return pa.Table.from_pylist(rows, schema=CATALOG)

    def _inspect(self, rows: list[Row]) -> None:
        table = pa.Table.from_pylist(rows, schema=CATALOG)
        found, read = inspect(table, self.people.keys, self.settings.actors, self._known)
        self.read += read
        name = f"inspected-{token_hex(4)}-{len(self._kept):05d}.parquet"
        write_inspected(self.store, name, found)
        self._kept.append(name)
        for row, told in zip(rows, found.to_pylist(), strict=True):
            row |= {column: told[column] for column in TOLD if column != "format"}
            row["format"] = told["format"] or row["format"]
            self.people.placeholders += bool(told["placeholder"])
            if told["patient_key"]:
                self.people.know(row["uri"], told["patient_key"], told["identity"] or told["patient_key"])

    def kept(self) -> dict[str, Any]:
        """What catalog.json says of what was inspected, for the next catalogue."""
        keys = self.people.keys
        return {
            "parts": self._kept,
            "decoder": DECODER_VERSION,
            "secret": None if keys.is_random else keys.fingerprint(),
        }


def _name(rows: list[Row], labels: dict[str, Label], people: People) -> None:
    for row in rows:
        if (label := labels.get(row["uri"])) is not None:
            people.add(row["uri"], label.patient_id, row["site"])


def _assign_splits(rows: list[Row], labels: dict[str, Label], people: People, settings: CatalogSettings) -> None:
    """Give every labelled film a split.

    Of folder names only `test` is kept: Kaggle's own val has 16 films, so train and val are pooled and split again. The
    splits of a table are kept as they are.
    """
    films = [row for row in rows if row["label"]]
    if not films:
        raise InputError(f"no label was found by {settings.labels}; name folders NORMAL and PNEUMONIA, or give a CSV")
    own = [labels[row["uri"]].split for row in films]
    test = settings.test_fraction
    if test is None:
        test = 0.0 if any(own) else DEFAULT_TEST_FRACTION
    splits = assign_splits(
        patients=people.identities([row["uri"] for row in films]),
        strata=[f"{row['label']}/{row['subtype'] or ''}" for row in films],
        kept=[split if split == "test" or settings.labels != "path" else None for split in own],
        fractions={"train": 1 - settings.val_fraction - test, "val": settings.val_fraction, "test": test},
        seed=settings.seed,
    )
    unknown = sum(row["uri"] not in people.of for row in films)
    if unknown > MOST_UNKNOWN * len(films) and len(set(splits)) > 1 and settings.patients != "unknown":
        raise InputError(
            f"{unknown} of the {len(films)} labelled films name no patient, so films of one could be trained on and"
            " tested on; give a column patient_id with --labels FILE.csv, read DICOM headers with --inspect, or take"
            " each film for a patient with --patients unknown"
        )
    if unknown:
        log.warning(
            "%d films have no patient id, each counts as a patient; a CSV patient_id or --inspect may help", unknown
        )
    for row, split in zip(films, splits, strict=True):
        row["split"] = split


class _Counter:
    """Counts rows as they pass, so that a streamed catalogue needs no second reading."""

    def __init__(self) -> None:
        self.scans = 0
        self._bytes = 0
        self._patients: set[str] = set()
        self._columns: dict[str, Counter[str]] = {name: Counter() for name in ("format", "label", "problem")}
        self._splits: Counter[tuple[str, str]] = Counter()

    def counted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.scans += table.num_rows
            self._bytes += pc.sum(table["size"]).as_py() or 0
            self._patients.update(pc.unique(table["patient_key"].drop_null()).to_pylist())
            for name, counter in self._columns.items():
                for entry in pc.value_counts(table[name]).to_pylist():
                    counter[entry["values"] or ("unknown" if name == "format" else "none")] += entry["counts"]
            pairs = (
                table.filter(pc.is_valid(table["split"])).group_by(["split", "label"]).aggregate([([], "count_all")])
            )
            for row in pairs.to_pylist():
                self._splits[row["split"], row["label"]] += row["count_all"]
            yield table

    def totals(self, *, labelled: bool, inspected: bool) -> dict[str, Any]:
        splits: dict[str, dict[str, int]] = {}
        for (split, label), films in sorted(self._splits.items()):
            splits.setdefault(split, {})[label] = films
        problems = {name: n for name, n in self._columns["problem"].items() if name != "none"}
        return {
            "scans": self.scans,
            "bytes": self._bytes,
            "formats": dict(self._columns["format"]),
            "labels": dict(self._columns["label"]) if labelled else {},
            "splits": splits,
            "patients": len(self._patients) or None,
            "problems": problems if inspected else None,
        }


def _write_parts(store: Store, tables: Iterable[pa.Table]) -> Iterator[str]:
    token = token_hex(4)
    waiting: list[pa.Table] = []
    number = 0
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROWS_PER_PART:
            yield _write_part(store, f"{token}-{number:05d}.parquet", waiting)
            waiting, number = [], number + 1
    if waiting:
        yield _write_part(store, f"{token}-{number:05d}.parquet", waiting)


def _write_part(store: Store, name: str, tables: list[pa.Table]) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink)
    store.put(name, sink.getvalue().to_pybytes())
    return name


def _commit(store: Store, manifest: dict[str, Any], parts: list[str]) -> None:
    """Name the new parts with one put; then remove those of an earlier catalogue."""
    before = json.loads(store.get(MANIFEST)) if store.exists(MANIFEST) else {}
    old = [*before.get("parts", []), *(before.get("inspected") or {}).get("parts", [])]
    store.put(MANIFEST, json.dumps({**manifest, "parts": parts}, indent=1).encode())
    for part in old:
        store.delete(part)
