"""Which films go into which part of a data set, under names fixed by what was asked for.

    DATASET/films-<plan>-00000.parquet   a part, written whole by the actor that decoded it
    DATASET/films-<plan>-00000.json      written after it: how many films it holds, and which were left out and why

`<plan>` is a hash of the films, their labels and splits, the preprocessing and the decoder. So a preparation that was
killed is taken up by the same command: the shards whose record is there are done. A shard in which the store failed
leaves no record. The records go when the data set is whole, and with them the parts of earlier and abandoned plans.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final

from models.spec import Preprocessing
from pipelines.contracts import STATUS_OF_REASON, Reason, Status, dataset_schema
from pipelines.decoding.version import DECODER_VERSION
from pipelines.errors import NotFoundError
from pipelines.storage import Store

Row = Mapping[str, Any]
"""Of the catalogue: scan_id, uri, etag, label, split and what else goes into a part."""

READ_THREADS: Final = 16
_OWN: Final = re.compile(r"films-[0-9a-f]{16}-\d{5,}\.(parquet|json)")
TRANSIENT: Final = {reason for reason, status in STATUS_OF_REASON.items() if status is Status.FAILED} - {
    Reason.VANISHED,
    Reason.CHANGED,
}
"""Reasons that say nothing about a film: the same command tries these films again before there is a data set."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What became of the films of one shard."""

    films: int
    """Written into the part."""
    left_out: Sequence[tuple[str, str]]
    """(scan_id, reason) of each film left out."""

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "ShardRecord":
        """The inverse of `to_json`."""
        value = json.loads(text)
        return cls(films=value["films"], left_out=[(scan, reason) for scan, reason in value["left_out"]])

    @property
    def lost(self) -> int:
        """Films left out for a reason that says nothing about them."""
        return sum(Reason(reason) in TRANSIENT for _, reason in self.left_out)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The shards of one preparation; the same request gives the same plan."""

    request: str
    """Hash of what was asked for."""
    generation: int
    """How often this was prepared before: a data set in use keeps its parts while it is prepared again."""
    shards: Sequence[Sequence[Row]]

    @property
    def name(self) -> str:
        """16 hex digits."""
        return blake2b(f"{self.request} {self.generation}".encode(), digest_size=8).hexdigest()

    @property
    def films(self) -> int:
        """Films planned."""
        return sum(len(shard) for shard in self.shards)

    def part(self, shard: int) -> str:
        """Key of a part."""
        return part_name(self.name, shard)

    def found(self, store: Store) -> dict[int, ShardRecord]:
        """The shards that are done: record and part are there."""
        keys = own_keys(store)
        done = [
            number
            for number in range(len(self.shards))
            if (part := self.part(number)) in keys or record_name(part) in keys
        ]
        with ThreadPoolExecutor(READ_THREADS) as threads:
            records = threads.map(lambda number: read_record(store, self.part(number)), done)
            return {
                number: record
                for number, record in zip(done, records, strict=True)
                if record and (not record.films or self.part(number) in keys)
            }


def plan_shards(shards: Sequence[Sequence[Row]], preprocessing: Preprocessing, old: Mapping[str, Any]) -> ShardPlan:
    """The plan of these shards; `old` is the plan in the dataset.json that is there, as `described` gave it."""
    made_by = [preprocessing.to_json(), DECODER_VERSION, dataset_schema(preprocessing.size).names]
    digest = blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=16)
    for shard in shards:
        digest.update(json.dumps([sorted(row.items()) for row in shard], default=str).encode())
    request = digest.hexdigest()
    before = old.get("generation", 0) if old.get("request") == request else -1
    return ShardPlan(request=request, generation=before + 1, shards=shards)


def described(plan: ShardPlan) -> dict[str, Any]:
    """The plan as dataset.json holds it."""
    return {"request": plan.request, "generation": plan.generation}


def part_name(plan: str, shard: int) -> str:
    """Key of the part of a shard."""
    return f"films-{plan}-{shard:05d}.parquet"


def record_name(part: str) -> str:
    """Key of the record of a part."""
    return part.removesuffix(".parquet") + ".json"


def read_record(store: Store, part: str) -> ShardRecord | None:
    """The record of a part; None if there is none."""
    try:
        return ShardRecord.from_json(store.get(record_name(part)))
    except NotFoundError:
        return None


def own_keys(store: Store) -> set[str]:
    """All parts and records of any plan at the root of a store."""
    try:
        return {info.key for chunk in store.list() for info in chunk if _OWN.fullmatch(info.key)}
    except NotFoundError:
        return set()
