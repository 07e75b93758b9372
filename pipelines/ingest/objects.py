"""The objects of an archive as they are listed, in Arrow: 1,000,000 of them take 150 MB."""

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts import TIMESTAMP
from pipelines.ingest.ignored import Ignored

OBJECTS: Final = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("modified", TIMESTAMP)])
"""One row per object; keys are relative to the root of the store."""
UNADDRESSABLE: Final = {
    "empty_segment": r"(^|/)(\.{1,2})?(/|$)",
    "control_character": r"[\x00-\x1f\x7f]",
}
"""Kind of Ignored -> the keys that obstore cannot address. A "/" at the end is no fault: it marks a folder."""


def arrow_objects(batch: Any) -> pa.RecordBatch:
    """One batch of `Store.list_arrow` as OBJECTS."""
    found = pa.record_batch(batch)
    etag = pc.utf8_trim(pc.coalesce(found["e_tag"], ""), characters='"')
    columns = [found["path"], found["size"].cast(pa.int64()), etag, found["last_modified"].cast(TIMESTAMP)]
    return pa.record_batch(columns, schema=OBJECTS)


def addressable(batch: pa.RecordBatch, ignored: Ignored) -> pa.RecordBatch:
    """The rows whose keys obstore can address; the others are counted."""
    for kind, pattern in UNADDRESSABLE.items():
        keys = pc.replace_substring_regex(batch["key"], "/$", "") if kind == "empty_segment" else batch["key"]
        wrong = pc.match_substring_regex(keys, pattern)
        if pc.any(wrong).as_py():
            named = batch["key"].filter(wrong)
            ignored.add(kind, named[0].as_py(), len(named))
            batch = batch.filter(pc.invert(wrong))
    return batch
