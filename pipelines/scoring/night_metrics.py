"""What the driver of a night exports while it is at work and when it has ended; `pipelines/metrics.py` has the names.

The driver counts, from the summaries of the shards as they arrive: one series a value, exported at 0 before the first
shard ends. A thread renews all of it every REFRESH_SECONDS, so a driver that was killed is known by a heartbeat and a
lease that grow old, where its last words outlive it: in a file or a Pushgateway.

Counters count what this call did. A resumed run counts what was left of it; `rayscan_done` has the whole plan, and
`rayscan_last_run_scans` the counts of run.json.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from pipelines import metrics
from pipelines.contracts import OUTCOMES, STATUS_OF_REASON
from pipelines.metrics import ALL_SITES, MOST_SITES, Metric
from pipelines.progress import Advance
from pipelines.scoring.ending import RunEnd
from pipelines.scoring.layout import Layout
from pipelines.scoring.plan import Plan
from pipelines.table.drift import OTHER_SITES, DriftFinding
from pipelines.table.lease import Lease
from pipelines.table.record import RunRecord
from pipelines.telemetry import Values

REFRESH_SECONDS: Final = 5.0
"""Less than Ray's ten seconds, so that no gauge leaves its port in between."""
STAGES: Final = ("fetch", "decode", "infer", "write")
_LEVELS: Final = {"ok": 0.0, "warn": 1.0, "alarm": 2.0}
_OF_THE_RUN: Final = (metrics.RUN_INFO, metrics.ACTORS, metrics.OLDEST, metrics.ETA_SECONDS)
_OF_THE_DRIFT: Final = (metrics.DRIFT_LEVEL, metrics.DRIFT_PSI, metrics.DRIFT_SHARE)


class NightMetrics:
    """The metrics of one call of `score`."""

    def __init__(self, scores: str, sinks: Sequence[Callable[["NightMetrics"], None]] = ()) -> None:
        self.values = Values()
        self.labels = {"scores": scores, "model": ""}
        """Of every value; the model is known once it has been read."""
        self._sinks = sinks
        """Called every REFRESH_SECONDS and at the end; they raise nothing."""
        self._lease: Lease | None = None
        self._sites: set[str] = set()
        self._planned = self._done = 0
        self._to_read = self._read = 0
        """Scans of this attempt at the run."""
        self._began = 0.0
        self._publishing = threading.Lock()
        self._with_ray = False

    @contextmanager
    def at_work(
        self, model_id: str, lease: Lease, last_success: Callable[[], datetime | None] = lambda: None
    ) -> Iterator[None]:
        """Renew and publish during the block, and once at its end; to Ray only then, as its session ends with it.

        `last_success` says when an earlier run succeeded, for the sinks, which outlive a night that does not.
        """
        self.labels["model"] = model_id
        self._lease, self._with_ray = lease, True
        self._begin_counters()
        self._set(metrics.RUNNING, 1)
        self._set(metrics.LEASE_INFO, 1, host=socket.gethostname(), pid=str(os.getpid()))
        if self._sinks and (before := last_success()):
            self._set(metrics.LAST_SUCCESS, before.timestamp())
        ended = threading.Event()

        def renew() -> None:
            self.publish()
            while not ended.wait(REFRESH_SECONDS):
                self.publish()

        renewing = threading.Thread(target=renew, name="metrics", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._lease = None
            self._set(metrics.RUNNING, 0)
            self.values.drop(metrics.LEASE_INFO, metrics.LEASE_RENEWED, metrics.ETA_SECONDS)
            self.publish()
            self._with_ray = False

    def publish(self) -> None:
        """Renew what changes with time, and give all values to Ray and to the sinks."""
        with self._publishing:
            self._set(metrics.HEARTBEAT, time.time())
            if self._lease is not None:
                self._set(metrics.LEASE_RENEWED, time.time() - self._lease.age)
            if self._read and self._to_read:
                pace = self._read / max(1e-3, time.monotonic() - self._began)
                self._set(metrics.ETA_SECONDS, max(0, self._to_read - self._read) / pace)
            if self._with_ray:
                self.values.to_ray()
            for sink in self._sinks:
                sink(self)

    def begin_run(self, plan: Plan, to_do: int) -> None:
        """A run begins, or goes on, with so many scans of its plan to do."""
        self.values.drop(*_OF_THE_RUN)
        self._planned, self._done = plan.planned, plan.planned - to_do
        self._to_read, self._read, self._began = to_do, 0, time.monotonic()
        self._set(metrics.PLANNED, plan.planned)
        self._set(metrics.PLANNED_AGAIN, plan.again)
        self._set(metrics.RUN_INFO, 1, run=plan.run_id, layout="none")
        if plan.oldest:
            self._set(metrics.OLDEST, datetime.fromisoformat(plan.oldest).timestamp())
        self._set_done()

    def begin_shards(self, plan: Plan, layout: Layout) -> None:
        """Ray is there, and is asked for actors. The counters are seen at 0 before the first of them has started."""
        self.values.drop(metrics.RUN_INFO)
        self._set(metrics.RUN_INFO, 1, run=plan.run_id, layout="gpu" if layout.gpus_per_actor else "cpu")
        self._set(metrics.ACTORS, layout.actors.most + layout.decoders.most)
        self._began = time.monotonic()
        self.publish()

    def reading(self, advance: Advance) -> Advance:
        """`advance`, which counts the scans read as well."""

        def counted(done: int) -> None:
            self._read += done
            self._add(metrics.READ, done)
            advance(done)

        return counted

    def end_shard(self, summary: Mapping[str, Any]) -> None:
        """Count what an actor says of the shard that it ended: `scoring/score.py`."""
        for status, reason, site, scans in json.loads(summary["counts"]):
            self._add(metrics.SCANS, scans, status=status)
            if reason:
                self._add(metrics.UNSCORED, scans, status=status, reason=reason)
            if site:
                # A gauge, counted up: which sites there are is known only when their films come.
                self._add(metrics.SITE_SCANS, scans, site=self._site(site), status=status)
        self._add(metrics.BYTES, summary["bytes"])
        for stage in STAGES:
            self._add(metrics.STAGE_SECONDS, summary[f"{stage}_seconds"], stage=stage)
        self._add(metrics.GPU_WAIT_SECONDS, summary["gpu_wait_seconds"])
        self._done += summary["scans"]
        self._set_done()

    def record(self, record: RunRecord, findings: Sequence[DriftFinding]) -> None:
        """A run is recorded: its counts and its drift."""
        for status, scans in record.counts.items():
            self._set(metrics.LAST_RUN_SCANS, scans, status=status)
        self._set(metrics.QUARANTINED, sum(corner["scans"] for corner in record.quarantined))
        self._set(metrics.LOST_WORKERS, record.lost_workers)
        if record.planned:  # a run with nothing to do says nothing about the films
            self.set_drift(findings)

    def set_drift(self, findings: Sequence[DriftFinding]) -> None:
        """The drift over all sites and for the MOST_SITES largest; of `too_few` films nothing is said."""
        self.values.drop(*_OF_THE_DRIFT)
        films: dict[str, int] = {}
        for finding in findings:
            if finding.site is not None:
                films[finding.site] = max(finding.n, films.get(finding.site, 0))
        kept = {None, *sorted(films, key=lambda site: -films[site])[:MOST_SITES]}
        for finding in findings:
            if finding.level == "too_few" or finding.site not in kept:
                continue
            of = {"quantity": finding.quantity, "site": finding.site or ALL_SITES}
            self._set(metrics.DRIFT_LEVEL, _LEVELS[finding.level], **of)
            if finding.psi is not None:
                self._set(metrics.DRIFT_PSI, finding.psi, **of)
            if finding.share is not None:
                self._set(metrics.DRIFT_SHARE, finding.share, **of)

    def end_run(self, end: RunEnd) -> None:
        """A run ended, however it did."""
        self._set(metrics.EXIT_CODE, end.exit_code)
        if end.exit_code == 0:
            self._set(metrics.LAST_SUCCESS, time.time())

    def end(self, exit_code: int) -> None:
        """The call is over; it may have ended before any run began."""
        self._set(metrics.RUNNING, 0)
        self._set(metrics.EXIT_CODE, exit_code)
        self.publish()

    def _begin_counters(self) -> None:
        for status in OUTCOMES:
            self._add(metrics.SCANS, 0, status=status.value)
        for reason, status in STATUS_OF_REASON.items():
            if status in OUTCOMES:
                self._add(metrics.UNSCORED, 0, status=status.value, reason=reason.value)
        for stage in STAGES:
            self._add(metrics.STAGE_SECONDS, 0, stage=stage)
        for metric in (metrics.READ, metrics.BYTES, metrics.GPU_WAIT_SECONDS):
            self._add(metric, 0)

    def _site(self, site: str) -> str:
        """The site itself, if it is one of the first that were seen."""
        if len(self._sites) < MOST_SITES:
            self._sites.add(site)
        return site if site in self._sites else OTHER_SITES

    def _set_done(self) -> None:
        self._set(metrics.DONE, self._done)
        self._set(metrics.BACKLOG, self._planned - self._done)

    def _set(self, metric: Metric, value: float, **labels: str) -> None:
        self.values.set(metric, value, **self.labels, **labels)

    def _add(self, metric: Metric, amount: float, **labels: str) -> None:
        self.values.add(metric, amount, **self.labels, **labels)
