"""A night: finish what a killed run left, plan what is new, score it, count every row from the Parquet.

    SCORES/scores/model=<model_id>/date=<day>/<run_id>-<shard>.parquet   the table
    SCORES/runs/<run_id>/plan.json, plan/…                               written before work starts
    SCORES/runs/<run_id>/run.json                                        written when every scan is accounted for

A plan without run.json is an unfinished run. The next call with the same model takes it up under its own run_id and
plan before it plans anything new: a second plan beside late parts of the first would double rows.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq

from models.bundle import Bundle
from models.spec import DISCLAIMER
from pipelines.bundles import fetch_bundle
from pipelines.contracts import Status
from pipelines.errors import IncompleteError, InputError
from pipelines.progress import progress
from pipelines.scoring.layout import Layout, choose_layout
from pipelines.scoring.plan import Plan, make_plan, read_shard, unfinished_plans
from pipelines.scoring.score import ScoreShard
from pipelines.scoring.sink import part_name, written_shards
from pipelines.shards import cluster_size, run_shards
from pipelines.storage import Store, open_store

log = logging.getLogger("rayscan")

READ_THREADS = 16
_STAGES = ("fetch_seconds", "decode_seconds", "infer_seconds")
_VERSIONED = ("rayscan", "ray", "torch", "pillow", "pydicom")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How to score. The defaults suit an archive of any size."""

    shard_size: int = 256
    """Scans of one part."""
    operating_point: str | None = None
    """Name of the locked threshold that decides `prediction`; None takes the bundle's default."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= 100_000:
            raise InputError(f"shard size {self.shard_size} is out of range; choose 1 to 100000 scans")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What stands in run.json."""

    run_id: str
    model_id: str
    bundle: str
    operating_point: str
    source: str
    date: str
    listed: int
    planned: int
    counts: Mapping[str, int]
    """Rows by status, counted from the Parquet; their sum is `planned`."""
    reasons: Mapping[str, int]
    """Rows without a probability, by reason."""
    shards: int
    resumed_shards: int
    """Shards that an earlier attempt of this run had written."""
    bytes: int
    seconds: float
    """Of this attempt."""
    scans_per_second: float
    stage_seconds: Mapping[str, float]
    """Summed over the actors of this attempt."""
    engine: str | None
    layout: str
    conditional_put: bool
    plan_hash: str
    versions: Mapping[str, str]
    finished: str
    notice: str = DISCLAIMER


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the actors of one attempt reported, added up."""

    totals: Mapping[str, float]
    engine: str | None
    seconds: float


def score(source: str, bundle_uri: str, out: str, settings: ScoreSettings) -> list[RunRecord]:
    """Score what the model at `bundle_uri` has not scored of an archive or catalogue yet; Ray is initialised already.

    Returns a record per run: those taken up again first, the new one last.
    Raises `InputError` for an unusable source, bundle or operating point, `IncompleteError` when rows are left over.
    """
    bundle = fetch_bundle(bundle_uri)
    _check_operating_point(bundle, settings.operating_point)
    store = open_store(out)
    conditional = store.has_conditional_put()
    if not conditional:
        log.warning("%s has no conditional put: parts are written by plain puts of fixed names", store.root)
    records = []
    for plan in unfinished_plans(store, bundle.model_id):
        log.info("run %s was left unfinished; taking it up again under its own plan", plan.run_id)
        # The same model may lie somewhere else by now.
        records.append(_run(store, replace(plan, bundle=open_store(bundle_uri).root), conditional))
    log.info("listing %s", source)
    plan = make_plan(
        store,
        source=source,
        bundle=bundle_uri,
        model_id=bundle.model_id,
        operating_point=settings.operating_point or bundle.calibration.default,
        shard_size=settings.shard_size,
    )
    if plan.planned == 0:
        log.info("nothing new: model %s has scored all %d scans of %s", bundle.model_id, plan.listed, source)
    records.append(_run(store, plan, conditional))
    return records


def _check_operating_point(bundle: Bundle, name: str | None) -> None:
    points = bundle.calibration.operating_points
    if name is not None and name not in points:
        raise InputError(f"the model has no operating point {name!r}; choose from {', '.join(sorted(points))}")


def _run(store: Store, plan: Plan, conditional: bool) -> RunRecord:
    done = written_shards(store, plan)
    todo = [shard for shard in range(plan.shards) if shard not in done]
    layout = choose_layout(*cluster_size(), shards=len(todo))
    if todo:
        log.info("run %s: %d scans, %d of %d shards to do", plan.run_id, plan.planned, len(todo), plan.shards)
        log.info("layout: %s", layout.reason)
    work = _work(store, plan, todo, layout)
    counts, reasons = reconcile(store, plan)
    record = RunRecord(
        **{name: getattr(plan, name) for name in _SHARED},
        counts=counts,
        reasons=reasons,
        resumed_shards=len(done),
        seconds=round(work.seconds, 3),
        scans_per_second=round(work.totals["scans"] / work.seconds, 1),
        stage_seconds={name.removesuffix("_seconds"): round(work.totals[name], 3) for name in _STAGES},
        engine=work.engine,
        layout=layout.reason,
        conditional_put=conditional,
        versions={name: version(name) for name in _VERSIONED},
        finished=datetime.now(UTC).isoformat(),
    )
    store.put(f"runs/{plan.run_id}/run.json", json.dumps(asdict(record), indent=1).encode())
    return record


_SHARED = {field.name for field in fields(Plan)} & {field.name for field in fields(RunRecord)}


def _work(store: Store, plan: Plan, todo: list[int], layout: Layout) -> _Work:
    """Run the shards that are left; each is written by the actor that scored it."""
    started = time.perf_counter()
    totals: dict[str, float] = dict.fromkeys(("scans", *_STAGES), 0.0)
    engine = None
    if todo:
        summaries = run_shards(
            f"score-{plan.run_id}",
            [{"shard": shard} for shard in todo],
            ScoreShard,
            {"scores": store.root, "plan": plan, "layout": layout},
            actors=layout.actors,
            cpus=layout.cpus_per_actor,
            gpus=layout.gpus_per_actor,
        )
        with progress(f"score {plan.run_id}", _scans(store, plan, todo)) as advance:
            for summary in summaries:
                for name in totals:
                    totals[name] += summary[name]
                engine = summary["engine"]
                advance(summary["scans"])
    return _Work(totals=totals, engine=engine, seconds=time.perf_counter() - started)


def _scans(store: Store, plan: Plan, shards: list[int]) -> int:
    """How many scans these shards hold; all of a plan's are as large as the first, but for the last."""
    size = read_shard(store, plan.run_id, 0).num_rows
    return sum(min(size, plan.planned - shard * size) for shard in shards)


def reconcile(store: Store, plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Count the run's rows by status and by reason from its parts.

    Raises `IncompleteError` unless the rows of every part are the scans of its shard, each once.
    """
    missing = set(range(plan.shards)) - written_shards(store, plan)
    if missing:
        raise IncompleteError(
            f"run {plan.run_id}: {len(missing)} of {plan.shards} shards are not written; run the same command again"
        )
    statuses: Counter[str] = Counter({status.value: 0 for status in Status})
    reasons: Counter[str] = Counter()
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for part in threads.map(lambda shard: _checked_part(store, plan, shard), range(plan.shards)):
            statuses.update(part["status"].to_pylist())
            reasons.update(reason for reason in part["reason"].to_pylist() if reason)
    return dict(statuses), dict(reasons)


def _checked_part(store: Store, plan: Plan, shard: int) -> pa.Table:
    name = part_name(plan, shard)
    mend = "move it away and run the same command again"
    try:
        part = pq.read_table(pa.BufferReader(store.get(name)), columns=["scan_id", "status", "reason"])
    except pa.ArrowException as error:
        raise IncompleteError(f"{store.uri(name)} is not a readable part; {mend}") from error
    planned = read_shard(store, plan.run_id, shard)
    if sorted(part["scan_id"].to_pylist()) != sorted(planned["scan_id"].to_pylist()):
        raise IncompleteError(
            f"{store.uri(name)} holds {part.num_rows} rows that are not the {planned.num_rows} scans of its shard;"
            f" {mend}"
        )
    return part
