"""Every metric that rayscan exports: name, labels, and what it says. Defined here only.

Ray's port of a node shows them with the prefix `ray_`, a file or a Pushgateway without it; a counter gets the suffix
`_total` in both. `cluster/deploy/monitoring` takes the prefix away, so dashboards and alerts know one name.

A counter is read by its increase, so each of its series must be exported at 0 before it counts: its labels have values
that are known beforehand. What is known only when it comes, such as a site, is a gauge. Seconds are counters, not
histograms: Ray estimates a histogram's sum from the midpoints of its buckets. Moments are exported rather than ages, so
that a value which nobody renews any more grows old by itself.
"""

from dataclasses import dataclass
from typing import Final, Literal

MOST_SITES: Final = 50
"""Sites with series of their own; each value of a label is a permanent time series."""
ALL_SITES: Final = "all sites"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The definition of one metric."""

    name: str
    """Without prefix and suffix; its unit stands last."""
    kind: Literal["counter", "gauge"]
    says: str
    """In one line, for people."""
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """As Prometheus has it, without Ray's prefix."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


NIGHT: Final = ("scores", "model")
"""Labels of every metric of `score`: the URI of the scores, and the id of the model."""


def _counter(name: str, says: str, *labels: str) -> Metric:
    return Metric(name=f"rayscan_{name}", kind="counter", says=says, labels=labels)


def _gauge(name: str, says: str, *labels: str) -> Metric:
    return Metric(name=f"rayscan_{name}", kind="gauge", says=says, labels=labels)


# Of a night, while it is at work

SCANS: Final = _counter("scans", "Scans that got a verdict from this driver, by status.", *NIGHT, "status")
UNSCORED: Final = _counter("unscored", "Those of them without a score, by reason.", *NIGHT, "status", "reason")
READ: Final = _counter("read", "Scans read so far, those of shards under way included.", *NIGHT)
BYTES: Final = _counter("bytes", "Bytes of scans fetched from the archive.", *NIGHT)
STAGE_SECONDS: Final = _counter(
    "stage_seconds", "Seconds spent in a stage (fetch, decode, infer, write), over all threads.", *NIGHT, "stage"
)
GPU_WAIT_SECONDS: Final = _counter("gpu_wait_seconds", "Seconds that actors with a GPU waited for films.", *NIGHT)
SITE_SCANS: Final = _gauge(
    "site_scans", f"Scans of this call by site and status, for {MOST_SITES} sites.", *NIGHT, "site", "status"
)
RUNNING: Final = _gauge("running", "1 while `score` is at work, 0 when it has ended.", *NIGHT)
HEARTBEAT: Final = _gauge("heartbeat_timestamp_seconds", "When these values were last renewed.", *NIGHT)
RUN_INFO: Final = _gauge("run_info", "1: id of the run, and its layout (cpu, gpu or none).", *NIGHT, "run", "layout")
ACTORS: Final = _gauge("actors", "Actors that the run asked for.", *NIGHT)
PLANNED: Final = _gauge("planned", "Scans of the run's plan.", *NIGHT)
PLANNED_AGAIN: Final = _gauge("planned_again", "Those of them that an earlier run tried.", *NIGHT)
DONE: Final = _gauge("done", "Scans of the plan that are written, by earlier attempts, too.", *NIGHT)
BACKLOG: Final = _gauge("backlog", "Scans of the plan that are still to do.", *NIGHT)
OLDEST: Final = _gauge("oldest_planned_timestamp_seconds", "When the oldest file of the plan was modified.", *NIGHT)
ETA_SECONDS: Final = _gauge("eta_seconds", "Seconds until the plan is done, at the pace so far.", *NIGHT)
LEASE_INFO: Final = _gauge(
    "lease_info", "1 while this driver holds the lease: its machine, process.", *NIGHT, "host", "pid"
)
LEASE_RENEWED: Final = _gauge("lease_renewed_timestamp_seconds", "When it last renewed the lease.", *NIGHT)

# Of a night that is over

LAST_SUCCESS: Final = _gauge(
    "last_success_timestamp_seconds", "When a run last ended with exit code 0, one with nothing to do, too.", *NIGHT
)
EXIT_CODE: Final = _gauge("exit_code", "Exit code of the last call of `score`.", *NIGHT)
LAST_RUN_SCANS: Final = _gauge(
    "last_run_scans", "Scans of the last recorded run by status, as in run.json.", *NIGHT, "status"
)
QUARANTINED: Final = _gauge("quarantined_scans", "Scans of it in folders that could not be read.", *NIGHT)
LOST_WORKERS: Final = _gauge("lost_workers", "How often a shard of it was begun again after a death.", *NIGHT)
DRIFT_LEVEL: Final = _gauge("drift_level", "Drift of it: 0 ok, 1 warn, 2 alarm.", *NIGHT, "quantity", "site")
DRIFT_PSI: Final = _gauge("drift_psi", "Its population stability index.", *NIGHT, "quantity", "site")
DRIFT_SHARE: Final = _gauge(
    "drift_share",
    "Share of its films: rejected or unreadable (reject_share), unfamiliar (unfamiliar_share), outside the intended"
    " use (outside_share).",
    *NIGHT,
    "quantity",
    "site",
)

# Of a search

TRIALS: Final = _counter("trials", "Trials that ended, by status.", "status")
TRIALS_RUNNING: Final = _gauge("trials_running", "Trials under way.")
EPOCHS: Final = _counter("epochs", "Epochs of trials that ended, by model family.", "model")
EPOCH_SECONDS: Final = _counter("epoch_seconds", "Seconds of these epochs.", "model")
BEST_VALUE: Final = _gauge("best_value", "Best validation value of the running search.", "metric")

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order above."""
