"""The scoring itself, as Ray Data actors: one shard of the plan becomes one part.

`ScoreShard` does all of it in one actor. With GPUs, `ReadShard` hands the films of a shard to `InferShard`. Every scan
of the shard becomes a row. A fault of one scan is a reason in its row, never an exception that stops the shard; an
exception means a bug of rayscan or a failure of the whole store.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.bundle import Bundle
from models.gate.checks import check_distance
from models.statistics.calibration import Calibration, called_positive
from pipelines.bundles import fetch_bundle
from pipelines.contracts import LABELS, PART, STATUS_OF_REASON, Reason, Status
from pipelines.decoding.columns import COLUMNS
from pipelines.decoding.film import FilmResult, ReadSettings
from pipelines.decoding.version import DECODER_VERSION
from pipelines.errors import BundleError
from pipelines.scoring.attempts import MAX_ATTEMPTS, begin_attempt, no_death
from pipelines.scoring.films import FilmReader
from pipelines.scoring.identity import write_identity
from pipelines.scoring.layout import THREADS, Layout
from pipelines.scoring.plan import Plan, read_shard
from pipelines.scoring.quarantine import Quarantine
from pipelines.scoring.sink import write_part, written_part, written_rows
from pipelines.scoring.watch import watched
from pipelines.storage import Store
from pipelines.tally import SILENT, Reporter

if TYPE_CHECKING:
    from models.engines.choice import Engine
    from models.engines.machine import Precision


@dataclass(frozen=True)
class Verdict:
    """The result columns of one row."""

    status: Status
    reason: Reason | None
    classes: npt.NDArray[np.float32] | None
    """Calibrated class probabilities, in the order of the bundle's classes."""
    distance: float | None = None
    """Distance from the training films in feature space."""
    film: FilmResult = field(default=FilmResult())
    """What was read, without its pixels."""


class ScoreShard:
    """Reads, infers and writes. The Ray dashboard shows its name."""

    def __init__(
        self,
        scores: str,
        plan: Plan,
        layout: Layout,
        precision: "Precision | None" = None,
        read: ReadSettings | None = None,
        identity: bool = True,
        score_unfamiliar: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        self.reading = _Reading(scores, plan, read, reporter)
        self.writing = _Writing(scores, plan, layout, precision, identity, score_unfamiliar)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Takes one row `shard`, returns one summary row; the scores go straight into the part."""
        shard = int(batch["shard"][0])
        with no_death(self.reading.store, self.reading.plan.run_id, shard):
            return self.writing.finish(shard, *self.reading.begin(shard))


class ReadShard:
    """Fetches and decodes, for `InferShard`."""

    def __init__(self, scores: str, plan: Plan, read: ReadSettings | None = None, reporter: Reporter = SILENT) -> None:
        self.reading = _Reading(scores, plan, read, reporter)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Takes one row `shard`; returns one row: the grey levels of its films, concatenated, and their fields.

        Pixels are passed as bytes: one buffer in the object store, read by the next actor without a copy.
        """
        shard = int(batch["shard"][0])
        pixels, fields = [], None
        with no_death(self.reading.store, self.reading.plan.run_id, shard):
            _, films = self.reading.begin(shard)
            if films is not None:
                fields = []
                for film in films:
                    if film.pixels is not None:
                        pixels.append(film.pixels.tobytes())
                    fields.append(json.dumps(film.to_json()))
        return {"shard": [shard], "pixels": [b"".join(pixels)], "films": [json.dumps(fields)]}


class InferShard:
    """Infers the films from `ReadShard`, and writes."""

    def __init__(
        self,
        scores: str,
        plan: Plan,
        layout: Layout,
        precision: "Precision | None" = None,
        identity: bool = True,
        score_unfamiliar: bool = False,
    ) -> None:
        self.store = Store(scores)
        self.plan = plan
        self.writing = _Writing(scores, plan, layout, precision, identity, score_unfamiliar)
        self.idle_since = time.perf_counter()

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Takes one row of `ReadShard`, returns one summary row."""
        waited = time.perf_counter() - self.idle_since
        summary = self._summary(batch)
        self.idle_since = time.perf_counter()
        return {**summary, "gpu_wait_seconds": [waited]}

    def _summary(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        shard = int(batch["shard"][0])
        fields = json.loads(batch["films"][0])
        with no_death(self.store, self.plan.run_id, shard):
            rows = read_shard(self.store, self.plan.run_id, shard)
            films = None if fields is None else _handed_over(fields, batch["pixels"][0], self.writing.side)
            return self.writing.finish(shard, rows, films)


class _Reading:
    """The half of the work that needs the archive."""

    def __init__(self, scores: str, plan: Plan, read: ReadSettings | None, reporter: Reporter) -> None:
        self.store = Store(scores)
        self.plan = plan
        self.reporter = reporter
        self.quarantine = Quarantine(self.store, plan)
        bundle = _bundle(plan)
        settings = read or ReadSettings(preprocessing=bundle.spec.preprocessing, intended_use=bundle.intended_use)
        self.reader = FilmReader(settings, threads=THREADS, quarantine=self.quarantine)

    def begin(self, shard: int) -> tuple[pa.Table, Iterator[FilmResult] | None]:
        """The rows of a shard and their films; None instead of films if the part is already written.

        A shard that was started before may hold the scan that killed its worker: then its films are read in isolation,
        and after MAX_ATTEMPTS not at all.
        """
        rows = read_shard(self.store, self.plan.run_id, shard)
        self.quarantine.enter(shard)
        attempt = begin_attempt(self.store, self.plan.run_id, shard)
        if attempt == 0:
            return rows, self.reporter.counted(shard, watched(self.reader.read(rows)))
        if written_part(self.store, self.plan, shard, rows.num_rows):
            return rows, None
        if attempt <= MAX_ATTEMPTS:
            return rows, self.reporter.counted(shard, watched(self.reader.read_isolated(rows)))
        return rows, iter([FilmResult(reason=Reason.WORKER_LOST)] * rows.num_rows)


class _Writing:
    """The half of the work that needs the model."""

    def __init__(
        self,
        scores: str,
        plan: Plan,
        layout: Layout,
        precision: "Precision | None",
        identity: bool,
        score_unfamiliar: bool,
    ) -> None:
        from models.engines.choice import CPU_BATCH, GPU_BATCH, load_engine  # noqa: PLC0415 (not in the driver)

        self.store = Store(scores)
        self.plan = plan
        bundle = _bundle(plan)
        self.identity, self.score_unfamiliar = identity, score_unfamiliar
        self.calibration = bundle.calibration
        self.limit = bundle.distance_limit()
        self.side = bundle.spec.preprocessing.film_size
        device, self.batch = ("cuda", GPU_BATCH) if layout.gpus_per_actor else ("cpu", CPU_BATCH)
        self.engine = load_engine(bundle, device=device, threads=1, precision=precision, batch=self.batch)

    def finish(self, shard: int, rows: pa.Table, films: Iterable[FilmResult] | None) -> dict[str, list[Any]]:
        """Infer, write the part, and return the summary; `films` is None if the part is already written."""
        summary: dict[str, Any] = {"shard": shard, "scans": rows.num_rows, "engine": self.engine.choice.to_json()}
        if films is None:
            there = written_part(self.store, self.plan, shard, rows.num_rows)
            assert there
            counts = _counted(written_rows(self.store, self.plan, shard, list(_COUNTED)))
            written = {**summary, "part_bytes": there.size, "counts": counts, **dict.fromkeys(_MEASURED, 0)}
            return {name: [value] for name, value in written.items()}
        read, verdicts, infer_seconds = infer(
            films, self.engine, self.batch, self.limit, score_unfamiliar=self.score_unfamiliar
        )
        started = time.perf_counter()
        scored = to_scores(rows, verdicts, self.plan, shard, self.calibration)
        if self.identity:
            write_identity(self.store, self.plan, shard, rows, read)
        summary["part_bytes"] = write_part(self.store, self.plan, shard, scored).size
        measured = {
            "bytes": sum(film.size for film in read),
            "fetch_seconds": sum(film.fetch_seconds for film in read),
            "decode_seconds": sum(film.decode_seconds for film in read),
            "infer_seconds": infer_seconds,
            "write_seconds": time.perf_counter() - started,
            "gpu_wait_seconds": 0.0,
        }
        return {name: [value] for name, value in {**summary, "counts": _counted(scored), **measured}.items()}


_MEASURED: Final = (
    "bytes", "fetch_seconds", "decode_seconds", "infer_seconds", "write_seconds", "gpu_wait_seconds",
)  # fmt: skip
_COUNTED: Final = ("status", "reason", "site")


def _counted(rows: pa.Table) -> str:
    """For the metrics, as JSON: status, reason, site and number of the scans that share them."""
    counted = rows.group_by(list(_COUNTED)).aggregate([([], "count_all")])
    return json.dumps([list(row.values()) for row in counted.select([*_COUNTED, "count_all"]).to_pylist()])


def infer(
    films: Iterable[FilmResult],
    engine: "Engine",
    batch: int,
    limit: float = math.inf,
    *,
    score_unfamiliar: bool = False,
) -> tuple[list[FilmResult], list[Verdict], float]:
    """Run the model on the films that have pixels, `batch` at a time.

    Films farther away than `limit` are rejected; with `score_unfamiliar` they keep their class probabilities.
    Returns, in order, each scan's film (without pixels) and its verdict, and the seconds of inference.
    """
    read: list[FilmResult] = []
    results: dict[int, tuple[npt.NDArray[np.float32], float]] = {}
    waiting: list[tuple[int, npt.NDArray[np.uint8]]] = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        started = time.perf_counter()
        classes, distance = engine(np.stack([pixels for _, pixels in waiting]))
        for at, (index, _) in enumerate(waiting):
            results[index] = classes[at], float(distance[at])
        waiting.clear()
        seconds += time.perf_counter() - started

    for film in films:
        if film.pixels is not None:
            waiting.append((len(read), film.pixels))
        read.append(replace(film, pixels=None))
        if len(waiting) == batch:
            run()
    if waiting:
        run()
    verdicts = [
        _verdict(film, limit, *results.get(n, (None, math.nan)), keep=score_unfamiliar) for n, film in enumerate(read)
    ]
    return read, verdicts, seconds


def to_scores(rows: pa.Table, verdicts: list[Verdict], plan: Plan, shard: int, calibration: Calibration) -> pa.Table:
    """The rows of a part, contracts.PART, from a shard's plan rows and verdicts in the same order."""
    threshold = calibration.operating_points[plan.operating_point]
    # The first class is the absence of disease; the others are kinds of disease.
    probabilities = [None if v.classes is None else float(1.0 - v.classes[0]) for v in verdicts]
    decided = [p if v.status is Status.SCORED else None for p, v in zip(probabilities, verdicts, strict=True)]
    n = rows.num_rows
    columns = {
        **{name: rows[name] for name in ("scan_id", "uri", "etag")},
        # A catalogue, which a person may have mended, is believed before the header.
        "site": pc.coalesce(rows["site"], pa.array([v.film.site for v in verdicts], pa.string())),
        "patient_key": pc.coalesce(rows["patient_key"], pa.array([v.film.patient_key for v in verdicts], pa.string())),
        "study_date": pc.coalesce(
            rows["study_date"], pa.array([v.film.columns.study_date for v in verdicts], pa.date32())
        ),
        **{name: [getattr(v.film.columns, name) for v in verdicts] for name in COLUMNS if name != "study_date"},
        "supersedes": rows["supersedes"],
        "status": [v.status.value for v in verdicts],
        "reason": [v.reason and v.reason.value for v in verdicts],
        "detail": [v.film.detail or None for v in verdicts],
        "probability": probabilities,
        "class_probabilities": [None if v.classes is None else v.classes.tolist() for v in verdicts],
        "prediction": [None if p is None else LABELS[int(called_positive(p, threshold))] for p in decided],
        "operating_point": [None if p is None else plan.operating_point for p in decided],
        "ood_score": [v.distance for v in verdicts],
        "grey_mean": [v.film.grey and v.film.grey[0] for v in verdicts],
        "grey_spread": [v.film.grey and v.film.grey[1] for v in verdicts],
        "decoder_version": [DECODER_VERSION] * n,
        "run_id": [plan.run_id] * n,
        "shard": [shard] * n,
        "plan_version": [plan.table_version] * n,
        "scored_at": [datetime.now(UTC)] * n,
    }
    return pa.table(columns).select(PART.names).cast(PART)


def _bundle(plan: Plan) -> Bundle:
    bundle = fetch_bundle(plan.bundle)
    if bundle.model_id != plan.model_id:
        raise BundleError(f"{plan.bundle} holds model {bundle.model_id}, the plan is for {plan.model_id}")
    return bundle


def _verdict(
    film: FilmResult, limit: float, classes: npt.NDArray[np.float32] | None, distance: float, *, keep: bool
) -> Verdict:
    known = None if math.isnan(distance) else distance
    refusal = check_distance(distance, limit)
    reason = Reason(refusal) if refusal else film.reason
    status = Status.SCORED if reason is None else STATUS_OF_REASON[reason]
    return Verdict(status, reason, None if refusal and not keep else classes, known, replace(film, pixels=None))


def _handed_over(fields: list[str], pixels: bytes, side: int) -> Iterator[FilmResult]:
    grey = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, side, side)
    decoded = iter(grey)
    for text in fields:
        values = json.loads(text)
        yield FilmResult.from_json(values, next(decoded) if values["decoded"] else None)
