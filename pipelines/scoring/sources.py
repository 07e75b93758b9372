"""What is to be scored, as a stream: the files of an archive, the rows of a catalogue, or the URIs in a file."""

import csv
import io
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from models.messages import first_line
from pipelines.contracts import CATALOG, PLAN, scan_id
from pipelines.errors import InputError, NotFoundError, RayscanError
from pipelines.ingest.catalog import is_catalog, stream_catalog
from pipelines.ingest.catalog_info import MANIFEST, catalog_source, no_scans
from pipelines.ingest.containers import look_up
from pipelines.ingest.filters import Filters
from pipelines.ingest.ignored import Ignored
from pipelines.ingest.listing import Listing
from pipelines.stop import Stop, never
from pipelines.storage import open_store, read_object, split_uri

LISTED: Final = [name for name in PLAN.names if name not in {"supersedes", "shard"}]
STREAMED: Final = [*LISTED, "modified"]
STREAM: Final = pa.schema([*(PLAN.field(name) for name in LISTED), CATALOG.field("modified")])
HEAD_THREADS: Final = 32
ROWS: Final = 20_000
"""URIs of a file that are looked up before their rows are handed on."""

log = logging.getLogger("rayscan")


class Source:
    """The scans of an archive or a catalogue, columns STREAMED.

    Counts the rows of its stream, and keeps the error that ends it, of which DuckDB would keep only the text.
    """

    def __init__(self, uri: str, stop: Stop, filters: Filters | None = None) -> None:
        store = open_store(uri)
        self.stop = stop
        self.uri = store.root
        """Of the archive, the catalogue or the file."""
        self.is_catalog = is_catalog(uri)
        self.archive: str | None = store.root
        """A file below it that is not listed is no longer there. None: what is not listed may still be there."""
        self.listed_at: datetime | None = None
        """When a catalogue was made, by its store's clock: a file scored later may have come later."""
        self.rows = 0
        self.error: RayscanError | None = None
        self.ignored = Ignored()
        """What of an archive is not listed, and why; complete when the stream has ended."""
        self.filters = filters or Filters()
        if self.is_catalog:
            self.archive, self.listed_at = catalog_source(store), store.head(MANIFEST).modified
        if self.filters:
            self.archive = None
            if self.is_catalog:
                raise filters_without_archive(uri)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows from the first on."""
        self.rows, self.error = 0, None
        try:
            for table in self._tables():
                self.stop.check()
                self.rows += table.num_rows
                yield from table.select(STREAMED).cast(STREAM).to_batches()
        except RayscanError as error:
            self.error = error
            raise

    def nothing(self) -> InputError:
        """The error for a source without rows: a prefix with a typo must not pass for a night without new scans."""
        return no_scans(open_store(self.uri))

    def distinct(self, connection: duckdb.DuckDBPyConnection) -> int:
        """The number of files of a catalogue, which may name one twice; it is read again for that.

        Raises `InputError` if it names two versions of a file.
        """
        self._name(connection, ["uri", "scan_id"])
        twice = connection.execute(
            "SELECT min(uri) FROM named GROUP BY md5_number(uri) HAVING min(scan_id) <> max(scan_id) LIMIT 1"
        ).fetchone()
        if twice:
            raise InputError(
                f"{self.uri}: the catalogue names {twice[0]} in two versions; make it again with `rayscan catalog`"
            )
        self._name(connection, ["uri"])
        [(count,)] = connection.execute("SELECT count(DISTINCT md5_number(uri)) FROM named").fetchall()
        return int(count)

    def _name(self, connection: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
        batches = (batch for table in stream_catalog(self.uri, columns) for batch in table.to_batches())
        schema = pa.schema([(name, pa.string()) for name in columns])
        connection.register("named", pa.RecordBatchReader.from_batches(schema, batches))

    def _tables(self) -> Iterable[pa.Table]:
        if self.is_catalog:
            return stream_catalog(self.uri, columns=STREAMED)
        listing = Listing(open_store(self.uri), stop=self.stop, filters=self.filters)
        self.ignored = listing.ignored
        return listing


class UriFile(Source):
    """The files that a text file names, one URI a line; or the column `uri` of a CSV or Parquet file.

    Each is looked up for its size and etag. One that is not there is left out; how many were is logged.
    """

    def __init__(self, uri: str, stop: Stop, filters: Filters | None = None) -> None:
        if filters:
            raise filters_without_archive(uri)
        self.uri = open_store(uri).root
        self.stop = stop
        self.ignored = Ignored()
        self.is_catalog = False
        self.archive = None
        self.listed_at = None
        self.rows = 0
        self.error = None
        self._uris = list(dict.fromkeys(_named_uris(uri)))

    def nothing(self) -> InputError:
        """The error for a file none of whose URIs is there."""
        return InputError(f"{self.uri}: of its {len(self._uris)} URIs none is there; check them")

    def _tables(self) -> Iterator[pa.Table]:
        waiting, absent = iter(self._uris), 0
        with ThreadPoolExecutor(HEAD_THREADS) as threads:
            while some := list(islice(waiting, ROWS)):
                rows = [row for row in threads.map(_looked_up, some) if row]
                absent += len(some) - len(rows)
                yield pa.Table.from_pylist(rows, schema=STREAM)
        if absent:
            log.warning("%s: %d of its %d URIs are not there and are left out", self.uri, absent, len(self._uris))


def open_source(
    uri: str, *, names_uris: bool = False, stop: Stop | None = None, filters: Filters | None = None
) -> Source:
    """The source at a URI; `names_uris`: it is a file of URIs. `stop` ends its stream.

    Raises `NotFoundError` if there is none, `InputError` if the file names none, or `filters` do not go with it.
    """
    return (UriFile if names_uris else Source)(uri, stop or never(), filters)


def filters_without_archive(uri: str) -> InputError:
    """The error for --include, --exclude or --since with a source that has already been chosen from."""
    return InputError(f"{uri}: --include, --exclude and --since choose from an archive; give them to `rayscan catalog`")


def _looked_up(uri: str) -> dict[str, Any] | None:
    store, key = split_uri(uri)
    try:
        info = look_up(uri) or store.head(key)
    except NotFoundError:
        return None
    found = {"scan_id": scan_id(uri, info.etag), "uri": uri, "etag": info.etag, "size": info.size}
    return {**dict.fromkeys(STREAMED), **found, "modified": info.modified}


def _named_uris(file: str) -> Iterator[str]:
    """The URIs that a file names, in their canonical form."""
    data = read_object(file)
    if file.endswith(".parquet"):
        try:
            uris: Iterable[str | None] = pq.read_table(io.BytesIO(data), columns=["uri"])["uri"].to_pylist()
        except (pa.ArrowException, KeyError) as error:
            raise InputError(
                f"{file}: no Parquet file with a column uri ({first_line(error)}); give its URIs that name"
            ) from error
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: neither text, CSV nor Parquet; write one URI a line") from error
        if file.endswith(".csv"):
            table = csv.DictReader(io.StringIO(text, newline=""))
            if "uri" not in (table.fieldnames or []):
                raise InputError(f"{file}: the CSV file has no column uri; name it in the first line")
            uris = (row["uri"] for row in table)
        else:
            uris = text.splitlines()
    named = [uri.strip() for uri in uris if uri and uri.strip()]
    if not named:
        raise InputError(f"{file}: it names no URI; write one a line")
    return (open_store(uri).root for uri in named)
