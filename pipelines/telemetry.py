"""Every metric rayscan exports, in one place.

Ray exports them on each node's metrics port, prefixed `ray_` (counters also get the suffix `_total`), about ten seconds
late. Dashboards and alerts read them; results never depend on them. In a process without Ray the functions do nothing:
Ray would keep such values and show them in the next session.

A gauge that is set once is exported once: it stays on the port for about twenty seconds (seen with Ray 2.60), even if
its process has ended. So dashboards and alerts ask for its `max_over_time`.

Seconds are counters, not histograms: Ray estimates a histogram's sum from the midpoints of its buckets.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

    from pipelines.table.drift import DriftFinding

DRIFT_SITES: Final = 50
"""Sites with drift gauges of their own, those with most films; each tag value is a permanent time series."""
ALL_SITES: Final = "all sites"
_LEVEL_VALUES: Final = {"ok": 0.0, "warn": 1.0, "alarm": 2.0}


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    scans: "Counter"
    bytes: "Counter"
    stage_seconds: "Counter"
    trials: "Counter"
    trials_running: "Gauge"
    epochs: "Counter"
    epoch_seconds: "Counter"
    best_value: "Gauge"
    drift_psi: "Gauge"
    drift_share: "Gauge"
    drift_level: "Gauge"


@cache
def _metrics() -> _Metrics:
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415 (takes a second where there is no session)

    return _Metrics(
        scans=Counter("rayscan_scans", "Scans that got a verdict.", tag_keys=("status", "model")),
        bytes=Counter("rayscan_bytes", "Bytes of scans fetched from the archive."),
        stage_seconds=Counter("rayscan_stage_seconds", "Seconds spent in a stage, all threads.", tag_keys=("stage",)),
        trials=Counter("rayscan_trials", "Trials of searches that ended.", tag_keys=("status",)),
        trials_running=Gauge("rayscan_trials_running", "Trials under way."),
        epochs=Counter("rayscan_epochs", "Epochs of trials that ended.", tag_keys=("model",)),
        epoch_seconds=Counter("rayscan_epoch_seconds", "Seconds of these epochs.", tag_keys=("model",)),
        best_value=Gauge("rayscan_best_value", "Best validation value of the running search.", tag_keys=("metric",)),
        drift_psi=Gauge(
            "rayscan_drift_psi", "Population stability index of the last run.", tag_keys=("model", "quantity", "site")
        ),
        drift_share=Gauge(
            "rayscan_drift_share",
            "Share of the films of the last run: rejected or unreadable (reject_share), unfamiliar (unfamiliar_share),"
            " outside the intended use (outside_share).",
            tag_keys=("model", "quantity", "site"),
        ),
        drift_level=Gauge(
            "rayscan_drift_level",
            "Drift of the last run: 0 ok, 1 warn, 2 alarm.",
            tag_keys=("model", "quantity", "site"),
        ),
    )


def count_scans(statuses: Mapping[str, int], *, model: str) -> None:
    """Count scans of one model id by status (`scored`, `rejected`, `unreadable`, `failed`)."""
    if _exported():
        for status, scans in statuses.items():
            _add(_metrics().scans, scans, {"status": status, "model": model})


def count_bytes(size: int) -> None:
    """Count bytes fetched from an archive."""
    if _exported():
        _add(_metrics().bytes, size, {})


def count_seconds(stages: Mapping[str, float]) -> None:
    """Count seconds by stage (`fetch`, `decode`, `infer`)."""
    if _exported():
        for stage, seconds in stages.items():
            _add(_metrics().stage_seconds, seconds, {"stage": stage})


def count_trial(status: str) -> None:
    """Count one ended trial (`complete`, `pruned`, `failed`)."""
    if _exported():
        _add(_metrics().trials, 1, {"status": status})


def set_running(trials: int) -> None:
    """Set the number of running trials."""
    if _exported():
        _metrics().trials_running.set(float(trials))


def count_epoch(seconds: float, *, model: str) -> None:
    """Count one epoch of a trial, by model family."""
    if _exported():
        _add(_metrics().epochs, 1, {"model": model})
        _add(_metrics().epoch_seconds, seconds, {"model": model})


def set_best_value(value: float, *, metric: str) -> None:
    """Set the best value a search has reached so far."""
    if _exported():
        _metrics().best_value.set(float(value), {"metric": metric})


def set_drift(findings: Sequence["DriftFinding"], *, model: str) -> None:
    """Set the drift of a run, over all sites and for the `DRIFT_SITES` largest; `too_few` films set nothing."""
    if not _exported():
        return
    films: dict[str, int] = {}
    for finding in findings:
        if finding.site is not None:
            films[finding.site] = max(finding.n, films.get(finding.site, 0))
    kept = {None, *sorted(films, key=lambda site: -films[site])[:DRIFT_SITES]}
    for finding in findings:
        if finding.level == "too_few" or finding.site not in kept:
            continue
        tags = {"model": model, "quantity": finding.quantity, "site": finding.site or ALL_SITES}
        _metrics().drift_level.set(_LEVEL_VALUES[finding.level], tags)
        if finding.psi is not None:
            _metrics().drift_psi.set(finding.psi, tags)
        if finding.share is not None:
            _metrics().drift_share.set(finding.share, tags)


def _exported() -> bool:
    ray = sys.modules.get("ray")  # importing it takes a second; a process in a session has imported it
    return ray is not None and bool(ray.is_initialized())


def _add(counter: "Counter", amount: float, tags: dict[str, str]) -> None:
    if amount:  # Ray's counters refuse zero
        counter.inc(float(amount), tags)
