"""A bucket of S3 as Arrow batches: ranges of keys listed side by side by obstore, strange keys named by boto3.

S3 hands out 1,000 keys a request, one request after the other. The names of the uppermost folders cut the keys into
ranges, and LISTERS of them are asked for at a time. obstore reads an answer in a thirtieth of boto3's CPU time, but
ends the listing at a key with an empty segment or a control character; there boto3 lists on until it has passed it.

A server that ignores `start-after` (some Ceph and rclone versions) is listed as one range.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from models.messages import first_line
from pipelines.connections import s3_client
from pipelines.errors import StorageError
from pipelines.ingest.ignored import Ignored
from pipelines.ingest.objects import OBJECTS, UNADDRESSABLE, addressable, arrow_objects
from pipelines.stop import Stop
from pipelines.storage import Store, UnaddressableKeyError

LISTERS: Final = 16
"""Ranges listed at a time."""
MOST_RANGES: Final = 4 * LISTERS
FOLDER_REQUESTS: Final = 16
"""Requests for folder names, each of up to 1,000."""
STRANGE_PAGES: Final = 16
"""Pages that boto3 lists at a time, at most."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True)
class _Range:
    """Keys after one and up to another, which is None in the last range."""

    after: str = ""
    last: str | None = None
    by_boto: bool = False
    """obstore ended between `after` and the next chunk."""


def bucket_batches(store: Store, ignored: Ignored, stop: Stop) -> Iterator[pa.RecordBatch]:
    """The objects below the root of an S3 store as OBJECTS, each once. Raises what `Store.list` raises."""
    cuts = _cuts(store)
    if not cuts:
        yield from _as_one(store, ignored, stop)
        return
    ranges = [_Range(after, last) for after, last in zip(["", *cuts], [*cuts, None], strict=True)]
    with ThreadPoolExecutor(LISTERS, thread_name_prefix="list") as threads:
        waiting = {threads.submit(_some, store, part, stop) for part in ranges}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for task in done:
                    batch, left = task.result()
                    if left:
                        waiting.add(threads.submit(_some, store, left, stop))
                    if batch is not None:
                        yield addressable(batch, ignored)
        finally:
            for task in waiting:
                task.cancel()


def _some(store: Store, part: _Range, stop: Stop) -> tuple[pa.RecordBatch | None, _Range | None]:
    """The first chunk of a range, and what is left of the range."""
    stop.check()
    if part.by_boto:
        return _pages(store, part)
    try:
        chunk = next(store.list_arrow(part.after), None)
    except UnaddressableKeyError:
        return None, replace(part, by_boto=True)
    if chunk is None:
        return None, None
    batch = arrow_objects(chunk)
    # Without its last "/", which obstore removes, the mark of a folder comes earlier than where the store lists it.
    batch = batch.filter(pc.greater(batch["key"], part.after))
    if not batch.num_rows:
        return None, None
    end = pc.max(batch["key"]).as_py()
    if part.last is not None and end > part.last:
        return batch.filter(pc.less_equal(batch["key"], part.last)), None
    return batch, replace(part, after=end)


def _pages(store: Store, part: _Range) -> tuple[pa.RecordBatch, _Range | None]:
    """Pages by boto3 until one holds no strange key and ends at a key that obstore can take up."""
    rows: list[dict[str, Any]] = []
    after, is_strange, passed = part.after, False, False
    for _ in range(STRANGE_PAGES):
        found, is_whole = _page(store, after)
        rows += [row for row in found if part.last is None or row["key"] <= part.last]
        if is_whole or (found and part.last is not None and found[-1]["key"] > part.last):
            return _batch(rows), None
        after = found[-1]["key"]
        is_strange = bool(_strange(found))
        passed = passed or is_strange
        if passed and not is_strange:
            return _batch(rows), replace(part, after=after, by_boto=False)
    return _batch(rows), replace(part, after=after, by_boto=not (passed and not is_strange))


def _strange(rows: Sequence[dict[str, Any]]) -> int:
    ignored = Ignored()
    addressable(_batch(rows), ignored)
    return ignored.total


def _batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=OBJECTS)


def _page(store: Store, after: str) -> tuple[list[dict[str, Any]], bool]:
    """One page of objects after a key, and whether the listing ends with it."""
    bucket, prefix = _place(store)
    answer = _asked(store, Bucket=bucket, Prefix=prefix, StartAfter=prefix + after)
    return _rows(answer, prefix), not answer.get("IsTruncated")


def _rows(answer: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [
        {
            "key": entry["Key"].removeprefix(prefix),
            "size": entry["Size"],
            "etag": entry["ETag"].strip('"'),
            "modified": entry["LastModified"],
        }
        for entry in answer.get("Contents", [])
        if entry["Key"] != prefix
    ]


def _as_one(store: Store, ignored: Ignored, stop: Stop) -> Iterator[pa.RecordBatch]:
    """The whole bucket as one stream; from a strange key on, the rest of it by boto3."""
    last = ""
    try:
        for chunk in store.list_arrow():
            stop.check()
            batch = arrow_objects(chunk)
            last = max(last, pc.max(batch["key"]).as_py() or "")
            yield addressable(batch, ignored)
    except UnaddressableKeyError:
        bucket, prefix = _place(store)
        asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            stop.check()
            answer = _asked(store, **asked)
            rows = [row for row in _rows(answer, prefix) if row["key"] > last]
            yield addressable(_batch(rows), ignored)
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]


def _cuts(store: Store) -> list[str]:
    """Keys that cut the bucket into ranges, in order; none if it is flat, or the server ignores `start-after`."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 (0.2 s; local disk needs none)

    bucket, prefix = _place(store)
    folders, level, asked = {""}, [""], 0
    try:
        while level and len(folders) < LISTERS and asked < FOLDER_REQUESTS:
            below: list[str] = []
            for folder in level[: FOLDER_REQUESTS - asked]:
                asked += 1
                answer = s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix + folder, Delimiter="/")
                below += [entry["Prefix"].removeprefix(prefix) for entry in answer.get("CommonPrefixes", [])]
            folders.update(below)
            level = below
        cuts = _thinned(sorted({folder.rstrip("/") for folder in folders if _is_plain(folder)} - {""}))
        if not cuts:
            return []
        answer = s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=prefix + cuts[-1], MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        log.debug("%s: no folders could be asked for (%s); listed as one", store.root, first_line(error))
        return []
    return cuts if all(entry["Key"] > prefix + cuts[-1] for entry in answer.get("Contents", [])) else []


def _thinned(cuts: list[str]) -> list[str]:
    step = -(-len(cuts) // MOST_RANGES) or 1
    return cuts[::step]


def _is_plain(folder: str) -> bool:
    key = pa.array([folder.removesuffix("/")])
    return not any(pc.match_substring_regex(key, pattern)[0].as_py() for pattern in UNADDRESSABLE.values())


def _place(store: Store) -> tuple[str, str]:
    """The bucket, and the prefix of all keys below the root."""
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/" if prefix else ""


def _asked(store: Store, **asked: Any) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        answer: dict[str, Any] = s3_client().list_objects_v2(**asked)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{store.root}: the store failed while it was listed: {first_line(error)}") from error
    return answer
