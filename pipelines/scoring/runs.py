"""A night: finish what a killed run left, plan what is new, score it, and count every row in the Parquet files.

    SCORES/scores/…                                                      the table (`table/delta.py`)
    SCORES/runs/<run_id>/plan.json, plan/…                               written before work starts
    SCORES/runs/<run_id>/run.json, report.html                           written when every scan is accounted for
    SCORES/runs/<run_id>/end.json                                        how the run ended, whatever ended it
    SCORES/leases/model=<model_id>/…                                     which driver is at work

    planned ----> running ----> reconciled ----> recorded
                  ^     |            |
                  +-----+------------+   stopped, store or cluster failed, rows missing: exit 3 or 130, resumed

    planned       plan.json is there, with the generation of the lease it was made under. What a stalled driver writes
                  after another has taken its lease and planned is no plan: `_is_overtaken`
    running       shards become parts; each attempt at one ends as done, store_fault or died: `attempts.py`
    reconciled    every planned scan has its row in the table
    recorded      run.json is there; what fails after it (report, compaction) changes nothing: `_afterwards`

A plan without run.json is an unfinished run. The next call with the same model resumes it under its own run_id and plan
before planning anything new: a second plan beside late parts of the first would duplicate rows.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from models.bundle import Bundle
from models.messages import first_line
from pipelines.bundles import fetch_bundle
from pipelines.capacity import cluster_capacity
from pipelines.decoding.film import ReadSettings
from pipelines.errors import AccessError, ClusterError, IncompleteError, NotFoundError, RayscanError, StorageError
from pipelines.ingest.patients import patient_secret
from pipelines.pages.page_file import put_page
from pipelines.pools import check_memory
from pipelines.progress import progress
from pipelines.provenance import Provenance
from pipelines.scoring.attempts import forget_attempts, lost_workers, take_back
from pipelines.scoring.commits import GroupCommits, take_in
from pipelines.scoring.ending import Headway, RunEnd, end_written, forget_end
from pipelines.scoring.layout import LARGEST_BLOCK, Layout, choose_layout, gpus_wanted
from pipelines.scoring.night_metrics import NightMetrics
from pipelines.scoring.plan import (
    SMALLEST_SHARD,
    Plan,
    forget_plan,
    make_plan,
    newest_generation,
    read_shard,
    tombstones,
    unfinished_plans,
)
from pipelines.scoring.preview import PlanPreview, preview_plan
from pipelines.scoring.quarantine import corners
from pipelines.scoring.reconcile import reconcile
from pipelines.scoring.score import InferShard, ReadShard, ScoreShard
from pipelines.scoring.settings import ScoreSettings, operating_point
from pipelines.scoring.sink import part_of
from pipelines.shards import Stage, Used, run_shards
from pipelines.stop import stoppable
from pipelines.storage import Store, open_store
from pipelines.table.compact import MANY_PARTS, compact_model, remove_unused
from pipelines.table.delta import ScoresTable, create_table
from pipelines.table.drift import DriftTally, worst_level
from pipelines.table.lease import Lease, lease_of_scores
from pipelines.table.query import share_latest
from pipelines.table.record import RunRecord, earlier_records, last_success, write_record
from pipelines.tally import Reporter, counting
from pipelines.usage import Usage

__all__ = ["OpenSession", "ScoreSettings", "preview", "score"]

log = logging.getLogger("rayscan")

_STAGES = ("fetch_seconds", "decode_seconds", "infer_seconds", "write_seconds")
_VERSIONED = ("rayscan", "ray", "torch", "openvino", "pillow", "pydicom")

OpenSession = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the runs of one call of `score` share."""

    store: Store
    bundle: Bundle
    settings: ScoreSettings
    table: ScoresTable
    conditional: bool
    lease: Lease
    connect: Callable[[], None]
    """Starts Ray, or connects to it, on the first call."""
    ended: Callable[[RunEnd], None]
    """Told how each run ended."""
    metrics: NightMetrics


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The sums of what the actors of one attempt reported."""

    totals: Mapping[str, float]
    engine: Mapping[str, Any] | None
    seconds: float
    used: Usage = field(default=Usage())


def score(
    source: str,
    bundle_uri: str,
    out: str,
    settings: ScoreSettings,
    open_session: OpenSession = nullcontext,
    *,
    ended: Callable[[RunEnd], None] = lambda end: None,
    metrics: NightMetrics | None = None,
) -> list[RunRecord]:
    """Score the scans of an archive or catalogue that the model at `bundle_uri` has not scored yet.

    `open_session` opens a Ray session; it is called only if there is work. By default Ray must be initialised already.
    `ended` is told how each run ended, also of the one that an exception ends. `metrics` are kept up to date; without
    them, too, Ray's port has them.
    Returns one record per run: resumed runs first, the new one last.
    Raises `InputError` for an unusable source, bundle or operating point, and `IncompleteError` if scans are left:
    another run is at work, or the store failed.
    """
    bundle = fetch_bundle(bundle_uri)
    point = operating_point(bundle.calibration, settings.operating_point)
    store = open_store(out)
    metrics = metrics or NightMetrics(store.root)

    def told(end: RunEnd) -> None:
        metrics.end_run(end)
        ended(end)

    conditional = store.has_conditional_put()
    if not conditional:
        log.warning("%s has no conditional put: one run at a time can work there, of any model", store.root)
    with (
        lease_of_scores(store, bundle.model_id, conditional=conditional, wait=settings.wait) as lease,
        ExitStack() as opened,
        metrics.at_work(bundle.model_id, lease, lambda: last_success(store, bundle.model_id)),
    ):
        job = _Job(
            store=store,
            bundle=bundle,
            settings=settings,
            table=create_table(store, conditional=conditional),
            conditional=conditional,
            lease=lease,
            connect=_once(lambda: opened.enter_context(open_session())),
            ended=told,
            metrics=metrics,
        )
        records = []
        for plan in unfinished_plans(store, bundle.model_id):
            if _is_overtaken(job, plan):
                log.info("plan %s was overtaken: another run planned its scans later; it is removed", plan.run_id)
                forget_plan(store, plan)
                continue
            log.info("run %s was left unfinished; resuming it under its own plan", plan.run_id)
            # The same model may be at another URI by now.
            records.append(_run(job, replace(plan, bundle=open_store(bundle_uri).root), resumed=True))
        plan = _plan_new(job, source, bundle_uri, point)
        if plan.planned == 0:
            log.info("nothing new: model %s has scored all %d scans of %s", bundle.model_id, plan.listed, source)
        records.append(_run(job, plan))
    return records


def preview(
    source: str, bundle_uri: str, out: str, settings: ScoreSettings, *, price_per_core_hour: float | None = None
) -> PlanPreview:
    """What `score` would do, how long it would take and cost; nothing is written. Raises as `score` does."""
    bundle = fetch_bundle(bundle_uri)
    operating_point(bundle.calibration, settings.operating_point)
    return stoppable(
        lambda stop: preview_plan(
            open_store(out),
            source=source,
            model_id=bundle.model_id,
            **_planning(settings, bundle),
            price_per_core_hour=price_per_core_hour,
            stop=stop,
        ),
        "preview",
    )


def _planning(settings: ScoreSettings, bundle: Bundle) -> dict[str, Any]:
    """What a plan and its preview are told alike."""
    names = ("shard_size", "max_nights", "again", "names_uris", "allow_removals", "filters")
    # The films of a larger shard could not be handed from decoders to GPUs.
    largest = max(1, LARGEST_BLOCK // bundle.spec.preprocessing.film_size**2)
    return {**{name: getattr(settings, name) for name in names}, "largest_shard": largest}


def _plan_new(job: _Job, source: str, bundle_uri: str, point: str) -> Plan:
    """The plan of a new run. Raises `IncompleteError` if the lease was lost while it was made."""
    log.info("listing %s", source)
    plan = stoppable(
        lambda stop: make_plan(
            job.store,
            source=source,
            bundle=bundle_uri,
            model_id=job.bundle.model_id,
            operating_point=point,
            **_planning(job.settings, job.bundle),
            stop=stop,
            confirm=job.lease.confirm,
        ),
        "plan",
    )
    try:
        job.lease.confirm()
    except IncompleteError:  # lost since `make_plan` confirmed it: two plans of the same scans would duplicate rows
        forget_plan(job.store, plan)
        raise
    return plan


def _is_overtaken(job: _Job, plan: Plan) -> bool:
    """Whether this unfinished plan was written by a driver that stalled, after another took its lease and planned.

    A new plan is made only when none is unfinished. So if a plan of a later lease exists, this one was not there yet,
    and its scans are in the later one; nothing of it is in the table, because its driver holds no lease.
    """
    if not plan.lease_generation or job.table.latest().run_parts(plan.run_id, plan.model_id):
        return False
    return newest_generation(job.store, plan.model_id) > plan.lease_generation


def _run(job: _Job, plan: Plan, *, resumed: bool = False) -> RunRecord:
    """Do what is left of a plan and record the run. Raises `IncompleteError` if the store fails."""
    headway = Headway()
    with end_written(job.store, plan, headway, job.lease, job.ended):
        try:
            if resumed:
                forget_end(job.store, plan.run_id)
            return _finished(job, plan, headway)
        except (StorageError, AccessError, NotFoundError) as error:
            raise IncompleteError(
                f"{error}; run {plan.run_id} is unfinished: run the same command again when the store works"
            ) from error


def _finished(job: _Job, plan: Plan, headway: Headway) -> RunRecord:
    store = job.store
    if plan.removed:
        job.table.commit(tombstones(store, plan), plan.run_id)
    done = take_in(job.table.latest(), plan) if plan.shards else set()
    todo = [shard for shard in range(plan.shards) if shard not in done]
    headway.done.update(done)
    layout, work = _work(job, plan, todo, headway)
    drift = DriftTally(job.bundle.evaluation.get("val", {}).get("fingerprint"))
    left_out = corners(store, plan.run_id)
    account = reconcile(job.table.latest(), plan, drift, left_out)
    findings = drift.findings(earlier_records(store, plan.model_id)) if plan.planned else []
    record = RunRecord(
        **{name: getattr(plan, name) for name in _SHARED},
        model=job.bundle.name,
        threshold=job.bundle.calibration.operating_points[plan.operating_point],
        counts=dict(account.counts),
        reasons=dict(account.reasons),
        resumed_shards=len(done),
        lost_workers=lost_workers(store, plan.run_id),
        seconds=round(work.seconds, 3),
        scans_per_second=round(work.totals["scans"] / work.seconds, 1),
        megabytes_per_second=float(f"{work.totals['bytes'] / work.seconds / 1e6:.4g}"),
        stage_seconds={name.removesuffix("_seconds"): round(work.totals[name], 3) for name in _STAGES},
        score_unfamiliar=job.settings.score_unfamiliar,
        engine=work.engine,
        layout=layout.reason if layout else "nothing to do",
        **asdict(work.used),
        conditional_put=job.conditional,
        drift=[finding.to_json() for finding in findings],
        drift_level=worst_level(findings),
        versions={name: version(name) for name in _VERSIONED},
        finished=datetime.now(UTC).isoformat(),
        quarantined=[{**asdict(corner), "scans": account.quarantined[corner.prefix]} for corner in left_out],
    )
    write_record(store, record)
    headway.record = record
    job.metrics.record(record, findings)
    with _afterwards(f"run {plan.run_id} is recorded, but the notes of its attempts were not removed"):
        forget_attempts(store, plan.run_id)
    if plan.planned:
        remedy = f"do it with: rayscan compact {store.root}"
        with _afterwards(f"run {plan.run_id} is recorded, but its parts were not compacted; {remedy}"):
            _tidy(job)
    if plan.planned or plan.removed:
        with _afterwards(f"run {plan.run_id} is recorded, but the first question to `latest` will take longer"):
            share_latest(store.root)
    if plan.planned and job.settings.report:
        remedy = f"make it with: rayscan report {store.root} --out report.html"
        with _afterwards(f"run {plan.run_id} is recorded, but its report was not written; {remedy}"):
            _write_report(store, plan.run_id, job.settings.thumbnails)
    return record


@contextmanager
def _afterwards(what_failed: str) -> Iterator[None]:
    """A step after the record: whatever it raises, the run is over, and the next one begins."""
    try:
        yield
    except RayscanError as error:
        log.warning("%s (%s)", what_failed, error)
    except Exception as error:
        log.warning("%s (%s: %s)", what_failed, type(error).__name__, first_line(error), exc_info=True)


def _tidy(job: _Job) -> None:
    """Merge the parts of the night's day if they are many, and delete what nobody reads any more."""
    job.lease.confirm()
    for day in compact_model(job.table.latest(), job.bundle.model_id, fewest=MANY_PARTS):
        log.info("compacted %s: %d parts became %d", day.date, day.parts_before, day.parts_after)
    remove_unused(job.store)


def _write_report(store: Store, run_id: str, thumbnails: int) -> None:
    from pipelines.pages.night.page import night_page  # noqa: PLC0415 (matplotlib takes a second)

    put_page(night_page(store.root, thumbnails), store.uri(f"runs/{run_id}/report.html"))


_SHARED = {field.name for field in fields(Plan)} & {field.name for field in fields(RunRecord)}


def _work(job: _Job, plan: Plan, todo: list[int], headway: Headway) -> tuple[Layout | None, _Work]:
    """Run the remaining shards; each is written by the actor that scored it."""
    started = time.perf_counter()
    totals: dict[str, float] = dict.fromkeys(("scans", "bytes", *_STAGES), 0.0)
    engine = None
    if not todo:
        job.metrics.begin_run(plan, 0)
        return None, _Work(totals=totals, engine=None, seconds=time.perf_counter() - started)
    shard_size = read_shard(job.store, plan.run_id, 0).num_rows
    # All shards of a plan are as large as the first, except the last.
    scans = sum(min(shard_size, plan.planned - shard * shard_size) for shard in todo)
    job.metrics.begin_run(plan, scans)
    job.connect()
    log.info("run %s: %d scans, %d of %d shards to do", plan.run_id, plan.planned, len(todo), plan.shards)
    layout = _layout(job, len(todo), shard_size)
    log.info("layout: %s", layout.reason)
    job.metrics.begin_shards(plan, layout)
    used = Used()
    shards = [{"shard": shard} for shard in todo]
    commits = GroupCommits(job.table, plan.run_id)
    with (
        _stopped_in_order(job, plan, headway),
        progress("score", scans) as advance,
        counting(job.metrics.reading(advance), within_shards=shard_size > SMALLEST_SHARD) as count,
    ):
        stages = _stages(job, plan, layout, count.reporter)
        with closing(run_shards(f"score-{plan.run_id}", shards, *stages, used=used)) as summaries:
            for summary in summaries:
                job.lease.check()
                shard = summary["shard"]
                headway.end(shard)
                commits.add(part_of(plan, shard, size=summary["part_bytes"], rows=summary["scans"]))
                for name in totals:
                    totals[name] += summary[name]
                engine = summary["engine"]
                count.end(shard, summary["scans"])
                job.metrics.end_shard(summary)
    job.lease.confirm()
    commits.flush()
    seconds = time.perf_counter() - started
    return layout, _Work(totals=totals, engine=engine, seconds=seconds, used=used.so_far)


def _layout(job: _Job, shards: int, shard_size: int) -> Layout:
    """Raises `InputError` if no node of the cluster has the memory that each actor is to get."""
    limits, capacity = job.settings.actors, cluster_capacity()
    check_memory(limits.memory, capacity.largest_memory())
    gpus = gpus_wanted(capacity.gpus, capacity.most_gpus, limits, job.bundle.evaluation)
    return choose_layout(
        capacity.room(limits.memory),
        capacity.gpus,
        shards,
        most_cpus=capacity.most_room(limits.memory, gpus=gpus),
        most_gpus=gpus,
        shard_bytes=shard_size * job.bundle.spec.preprocessing.film_size**2,
        limits=limits,
    )


@contextmanager
def _stopped_in_order(job: _Job, plan: Plan, headway: Headway) -> Iterator[None]:
    """If the block is stopped by an operator or by the store, shards under way did not die: take their markers back.

    Where workers were lost (`ClusterError`) they may have died; where the lease was lost, their markers are another's.
    """
    try:
        yield
    except ClusterError:
        raise
    except (KeyboardInterrupt, SystemExit, RayscanError):
        if not job.lease.is_lost:
            headway.taken_back = take_back(job.store, plan.run_id, set(range(plan.shards)) - headway.done)
        raise


def _stages(job: _Job, plan: Plan, layout: Layout, reporter: Reporter) -> list[Stage]:
    shared = {"scores": job.store.root, "plan": plan}
    reading = {**shared, "read": _reading(job, plan), "reporter": reporter}
    writing = {**shared, "layout": layout, **_writing(job.settings)}
    infer, read, gpus, memory = layout.actors, layout.decoders, layout.gpus_per_actor, layout.memory
    if layout.is_split:
        return [
            Stage(actor=ReadShard, settings=reading, actors=read.most, least=read.least, memory=memory),
            Stage(actor=InferShard, settings=writing, actors=infer.most, least=infer.least, cpus=0, gpus=gpus),
        ]
    return [
        Stage(
            actor=ScoreShard,
            settings={**reading, **writing},
            actors=infer.most,
            least=infer.least,
            cpus=0 if gpus else 1,
            gpus=gpus,
            memory=memory,
        )
    ]


def _writing(settings: ScoreSettings) -> dict[str, Any]:
    return {
        "precision": settings.precision,
        "identity": settings.identity,
        "score_unfamiliar": settings.score_unfamiliar,
    }


def _reading(job: _Job, plan: Plan) -> ReadSettings:
    settings = job.settings
    provenance = Provenance(site=settings.site, site_from=settings.site_from, root=plan.source, secret=patient_secret())
    return ReadSettings(
        preprocessing=job.bundle.spec.preprocessing,
        provenance=provenance,
        intended_use=job.bundle.intended_use,
        largest=settings.largest_scan,
    )


def _once(open_session: Callable[[], object]) -> Callable[[], None]:
    opened: list[object] = []

    def ensure() -> None:
        if not opened:
            opened.append(open_session())

    return ensure
