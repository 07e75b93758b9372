"""The scoring itself: one actor takes one shard from the plan to its part.

Every scan of the shard becomes a row. What is wrong with one scan is a reason in its row, never an exception that
stops the shard; an exception that does go up is a fault of rayscan or of the whole store.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.calibration import Calibration
from models.engine import Engine, load_engine
from models.fingerprint import grey_statistics
from models.gate import check_pixels, check_tags
from models.spec import Preprocessing
from pipelines import telemetry
from pipelines.bundles import fetch_bundle
from pipelines.contracts import LABELS, SCORES, STATUS_OF_REASON, Reason, Status
from pipelines.errors import BundleError, ScanError
from pipelines.ingest.decode import decode
from pipelines.ingest.fetch import fetch
from pipelines.scoring.layout import Layout
from pipelines.scoring.plan import Plan, read_shard
from pipelines.scoring.sink import write_part
from pipelines.storage import Store

PREFETCH = 48
"""Scans fetched and decoded ahead of the inference; bounds an actor's memory."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Film:
    """What fetching and decoding made of one scan: pixels, or the reason there are none."""

    pixels: npt.NDArray[np.uint8] | None = None
    reason: Reason | None = None
    grey: tuple[float, float] | None = None
    """Mean and standard deviation of the grey levels, of a film that decoded."""
    size: int = 0
    """Bytes fetched."""
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """The result columns of one row."""

    status: Status
    reason: Reason | None
    classes: npt.NDArray[np.float32] | None
    """Calibrated class probabilities, in the order of the bundle's classes."""
    distance: float | None = None
    """From the training films in feature space."""
    grey: tuple[float, float] | None = None
    """Mean and standard deviation of the grey levels."""


class ScoreShard:
    """The Ray Data actor. Its name is what the dashboard shows."""

    def __init__(self, scores: str, plan: Plan, layout: Layout) -> None:
        self.store = Store(scores)
        self.plan = plan
        self.layout = layout
        self.bundle = fetch_bundle(plan.bundle)
        if self.bundle.model_id != plan.model_id:
            raise BundleError(f"{plan.bundle} holds model {self.bundle.model_id}, the plan is for {plan.model_id}")
        self.engine = load_engine(self.bundle, threads=layout.cpus_per_actor)
        self.threads = ThreadPoolExecutor(layout.threads, thread_name_prefix="fetch-decode")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """One row `shard` in, one summary row out; the scores go straight into the part."""
        (shard,) = (int(number) for number in batch["shard"])
        started = time.perf_counter()
        rows = read_shard(self.store, self.plan.run_id, shard)
        films, verdicts, infer_seconds = score_rows(
            rows, self.bundle.spec.preprocessing, self.engine, self.threads, self.layout.batch
        )
        table = to_scores(rows, verdicts, self.plan, shard, self.bundle.calibration)
        write_part(self.store, self.plan, shard, table)
        statuses = Counter(verdict.status for verdict in verdicts)
        summary: dict[str, Any] = {
            "shard": shard,
            "scans": len(verdicts),
            "bytes": sum(film.size for film in films),
            "seconds": time.perf_counter() - started,
            "fetch_seconds": sum(film.fetch_seconds for film in films),
            "decode_seconds": sum(film.decode_seconds for film in films),
            "infer_seconds": infer_seconds,
            "engine": self.engine.name,
        }
        telemetry.count_scans({status.value: n for status, n in statuses.items()}, model=self.plan.model_id)
        telemetry.count_bytes(summary["bytes"])
        telemetry.count_seconds({stage: summary[f"{stage}_seconds"] for stage in ("fetch", "decode", "infer")})
        return {name: [value] for name, value in summary.items()}


def score_rows(
    rows: pa.Table, preprocessing: Preprocessing, engine: Engine, threads: ThreadPoolExecutor, batch: int
) -> tuple[list[Film], list[Verdict], float]:
    """Fetch, decode, gate and infer the scans of a plan's rows, in their order.

    Returns what became of each scan, twice: its film (without pixels) and its verdict; and the seconds of inference.
    """
    films: list[Film] = []
    results: dict[int, tuple[npt.NDArray[np.float32], float]] = {}
    waiting: list[tuple[int, npt.NDArray[np.uint8]]] = []
    infer_seconds = 0.0

    def infer() -> None:
        nonlocal infer_seconds
        started = time.perf_counter()
        classes, distance = engine(np.stack([pixels for _, pixels in waiting]))
        for at, (index, _) in enumerate(waiting):
            results[index] = classes[at], float(distance[at])
        waiting.clear()
        infer_seconds += time.perf_counter() - started

    scans = zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)
    for film in _ahead(threads, lambda scan: read_film(*scan, preprocessing), scans):
        if film.pixels is not None:
            waiting.append((len(films), film.pixels))
        films.append(replace(film, pixels=None))
        if len(waiting) == batch:
            infer()
    if waiting:
        infer()
    return films, [_verdict(film, *results.get(n, (None, None))) for n, film in enumerate(films)], infer_seconds


def read_film(uri: str, etag: str, preprocessing: Preprocessing) -> Film:
    """Fetch, decode and gate one scan. Whatever is wrong with it, or with its way here, is the film's reason."""
    pixels, grey, reason, size = None, None, None, 0
    started = fetched = time.perf_counter()
    try:
        data = fetch(uri, etag)
        size = len(data)
        fetched = time.perf_counter()
        scan = decode(data, preprocessing)
        grey = grey_statistics(scan.pixels)
        refusal = check_tags(scan.tags) or check_pixels(scan.pixels)
        reason, pixels = (Reason(refusal), None) if refusal else (None, scan.pixels)
    except ScanError as error:
        reason = error.reason
    ended = time.perf_counter()
    if not size:  # the fetch itself failed, or brought nothing
        fetched = ended
    return Film(
        pixels=pixels,
        reason=reason,
        grey=grey,
        size=size,
        fetch_seconds=fetched - started,
        decode_seconds=ended - fetched,
    )


def to_scores(rows: pa.Table, verdicts: list[Verdict], plan: Plan, shard: int, calibration: Calibration) -> pa.Table:
    """The rows of a part, contracts.SCORES, from a shard's plan rows and verdicts in the same order."""
    threshold = calibration.operating_points[plan.operating_point]
    # The first class is the absence of disease; the others are kinds of it.
    probabilities = [None if v.classes is None else float(1.0 - v.classes[0]) for v in verdicts]
    n = rows.num_rows
    columns = {
        **{name: rows[name] for name in ("scan_id", "uri", "etag", "site", "patient_key", "study_date")},
        "status": [v.status.value for v in verdicts],
        "reason": [v.reason and v.reason.value for v in verdicts],
        "probability": probabilities,
        "class_probabilities": [None if v.classes is None else v.classes.tolist() for v in verdicts],
        "prediction": [None if p is None else LABELS[p >= threshold] for p in probabilities],
        "operating_point": [None if p is None else plan.operating_point for p in probabilities],
        "ood_score": [v.distance for v in verdicts],
        "grey_mean": [v.grey and v.grey[0] for v in verdicts],
        "grey_spread": [v.grey and v.grey[1] for v in verdicts],
        "model_id": [plan.model_id] * n,
        "run_id": [plan.run_id] * n,
        "shard": [shard] * n,
        "scored_at": [datetime.now(UTC)] * n,
    }
    return pa.table(columns).cast(SCORES)


def _verdict(film: Film, classes: npt.NDArray[np.float32] | None, distance: float | None) -> Verdict:
    status = Status.SCORED if film.reason is None else STATUS_OF_REASON[film.reason]
    known = None if distance is None or math.isnan(distance) else distance
    return Verdict(status, film.reason, classes, known, film.grey)


def _ahead(threads: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order, with up to PREFETCH of them being worked on while the caller is busy."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(threads.submit(function, item))
        if len(running) > PREFETCH:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
