"""The record of a finished run, stored beside its scores: runs/<run_id>/run.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from models.spec import DISCLAIMER
from pipelines.contracts import Reason
from pipelines.errors import NotFoundError
from pipelines.storage import Store
from pipelines.table.drift import DriftFinding, others_than_the_models

NIGHTS: Final = 30
"""Number of earlier runs a night is compared with."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of run.json. A plan without one is an unfinished run."""

    run_id: str
    model_id: str
    model: str
    """What people call it: `models.bundle.Bundle.name`."""
    bundle: str
    operating_point: str
    threshold: float
    source: str
    date: str
    listed: int
    planned: int
    given_up: int
    """Scans not planned because they failed in too many runs."""
    removed: int
    """Files that are no longer listed, and got a tombstone; not among `counts`."""
    counts: Mapping[str, int]
    """Rows by status, counted in the Parquet files; their sum is `planned`."""
    reasons: Mapping[str, int]
    """Rows that were not scored, by reason."""
    shards: int
    resumed_shards: int
    """Shards already written by an earlier attempt of this run."""
    lost_workers: int
    """How often a shard was restarted because its worker, node or driver was lost."""
    bytes: int
    """Size of the planned files."""
    seconds: float
    """Duration of this attempt, from the first shard handed out to the last one done."""
    scans_per_second: float
    megabytes_per_second: float
    """Fetched; a megabyte is 10^6 bytes."""
    stage_seconds: Mapping[str, float]
    """Fetch, decode, infer, write; summed over the actors and their threads in this attempt."""
    score_unfamiliar: bool
    """Whether this attempt kept the probabilities of unfamiliar films."""
    engine: Mapping[str, Any] | None
    """The engine used: name, precision, device, version and why it was chosen; None if nothing was left to score."""
    layout: str
    """What was asked of the cluster, and why."""
    actors: int
    """Most actors at work at a time; like the three below 0 if nothing was left to score."""
    cpus: int
    """Most CPUs that these actors held at a time."""
    gpus: int
    nodes: int
    """Nodes on which anything was done."""
    conditional_put: bool
    plan_hash: str
    drift: Sequence[Mapping[str, Any]]
    drift_level: str
    versions: Mapping[str, str]
    finished: str
    quarantined: Sequence[Mapping[str, Any]] = ()
    """Folders left out because their scans could not be read: prefix, reason, told, scans. Then the run exits 3."""
    ignored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What of the archive was not listed: kind of `pipelines/ingest/ignored.py` -> how many, and an example."""
    notice: str = DISCLAIMER

    def left_out(self) -> list[str]:
        """One line for each folder in quarantine, and one for scans elsewhere to which the store denied access."""
        lines = [
            f"{c['prefix']}: {c['scans']} scans could not be read ({c['reason']}): {c['told']}"
            for c in self.quarantined
        ]
        denied = Reason.ACCESS_DENIED.value
        single = self.reasons.get(denied, 0) - sum(c["scans"] for c in self.quarantined if c["reason"] == denied)
        if single > 0:
            lines.append(
                f"{self.source}: {single} single scans could not be read ({denied}); the view rejects has them"
            )
        return lines

    def alarms(self) -> list[str]:
        """One line for each drift alarm."""
        return [_in_a_line(finding) for finding in self.drift if finding["level"] == "alarm"]

    def in_short(self) -> dict[str, Any]:
        """The summary printed when the run is over; the rest is in run.json."""
        drifted = [f for f in self.drift if f["level"] in {"warn", "alarm"}]
        others = others_than_the_models([DriftFinding.from_json(f) for f in self.drift])
        return {
            **({"alarm": [f"{f.note} ({f.site or 'all sites'})" for f in others]} if others else {}),
            **{name: getattr(self, name) for name in _SHORT},
            "engine": self.engine and self.engine["name"],
            "drift": [_in_a_line(finding) for finding in drifted] or self.drift_level.replace("_", " "),
            "notice": self.notice,
        }


_SHORT: Final = (
    "run_id", "model", "model_id", "source", "listed", "planned", "given_up", "removed", "ignored", "counts", "reasons",
    "resumed_shards", "lost_workers", "seconds", "scans_per_second", "layout", "operating_point", "threshold",
)  # fmt: skip


def _in_a_line(finding: Mapping[str, Any]) -> str:
    return f"{finding['level']}: {finding['quantity']} of {finding['site'] or 'all sites'}, {finding['note']}"


def write_record(store: Store, record: RunRecord) -> None:
    """Write run.json, which finishes the run: it is never resumed after that."""
    store.put(f"runs/{record.run_id}/run.json", json.dumps(asdict(record), indent=1).encode())


def earlier_records(store: Store, model_id: str) -> list[dict[str, Any]]:
    """The records of this model's last NIGHTS runs with anything to do, oldest first, as JSON values."""
    keys = [info.key for chunk in store.list("runs") for info in chunk if info.key.endswith("/run.json")]
    records: list[dict[str, Any]] = []
    for key in sorted(keys, reverse=True):
        record = json.loads(store.get(key))
        if record["model_id"] == model_id and record["planned"]:
            records.insert(0, record)
        if len(records) == NIGHTS:
            break
    return records


def last_success(store: Store, model_id: str) -> datetime | None:
    """When the newest run of this model ended that left no scan out, by its record; None if not among the newest."""
    keys = [info.key for chunk in store.list("runs") for info in chunk if info.key.endswith("/run.json")]
    for key in sorted(keys, reverse=True)[: 3 * NIGHTS]:  # other models may have runs there, too
        try:
            record = json.loads(store.get(key))
        except (NotFoundError, ValueError):  # pruned meanwhile, or damaged: a metric must not stop a night
            continue
        # Nor must a record that a later or an older version wrote otherwise.
        left_out = record.get("quarantined") or record.get("reasons", {}).get(Reason.ACCESS_DENIED.value)
        if record.get("model_id") == model_id and not left_out and "finished" in record:
            return datetime.fromisoformat(record["finished"])
    return None
