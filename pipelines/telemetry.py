"""Brings the values of metrics (`metrics.py`) to Ray, and into the text that Prometheus reads.

Ray exports them on its port of the node, about ten seconds late. In a process without a session nothing is given to
Ray: it would keep the values and show them in the next session. Results never depend on any of it.

Only drivers export: what workers measure comes back with their results. A counter made in an actor is a series of its
own, first seen at its full value, of which `increase` counts nothing: 5,371 after a night of 6,000 films.

A gauge that is set once is exported once and leaves the port after twenty seconds (seen with Ray 2.60), so `Values`
gives Ray all of them again whenever it is asked to.
"""

import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from pipelines import metrics
from pipelines.metrics import Metric

if TYPE_CHECKING:
    from prometheus_client import Metric as Family
    from ray.util.metrics import Counter, Gauge

TRIAL_STATUSES = ("complete", "pruned", "failed")


class Values:
    """The values of a driver's metrics. Any thread may change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._sent: dict[tuple[Metric, tuple[str, ...]], float] = {}
        """What Ray was told of each counter."""

    def add(self, metric: Metric, amount: float, /, **labels: str) -> None:
        """Count; 0 makes the series known."""
        with self._lock:
            series = self._values.setdefault(metric, {})
            key = _key(metric, labels)
            series[key] = series.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values.setdefault(metric, {})[_key(metric, labels)] = float(value)

    def drop(self, *metrics: Metric) -> None:
        """Export these gauges no more."""
        with self._lock:
            for metric in metrics:
                self._values.pop(metric, None)

    def to_ray(self) -> None:
        """Give all values to the Ray session of this process, if there is one."""
        if not _in_session():
            return
        with self._lock:
            for metric, series in self._values.items():
                for key, value in series.items():
                    labels = dict(zip(metric.labels, key, strict=True))
                    if metric.kind == "gauge":
                        _record(metric, value, labels)
                    elif (told := self._sent.get((metric, key))) != value:
                        _record(metric, value - (told or 0.0), labels)
                        self._sent[metric, key] = value

    def text(self) -> bytes:
        """All values in Prometheus' text format, as node_exporter and the Pushgateway take it."""
        from prometheus_client import generate_latest  # noqa: PLC0415 (a tenth of a second)

        return generate_latest(self)  # which only calls `collect`

    def collect(self) -> Iterator["Family"]:
        """The values as prometheus_client knows them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        with self._lock:
            values = {metric: dict(series) for metric, series in self._values.items()}
        for metric, series in values.items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.says, labels=metric.labels)
            for key, value in series.items():
                family.add_metric(key, value)
            yield family


def begin_search() -> None:
    """Make the counters of trials known, at 0."""
    for status in TRIAL_STATUSES:
        _record_in_session(metrics.TRIALS, 0, status=status)


def count_trial(status: str) -> None:
    """Count one ended trial (`complete`, `pruned`, `failed`)."""
    _record_in_session(metrics.TRIALS, 1, status=status)


def set_running(trials: int) -> None:
    """Set the number of running trials."""
    _record_in_session(metrics.TRIALS_RUNNING, trials)


def begin_trial(*, model: str) -> None:
    """Make the counters of its model family known, at 0."""
    _count_epochs(0, 0.0, model)


def count_epoch(seconds: float, *, model: str) -> None:
    """Count one epoch of a trial, by model family."""
    _count_epochs(1, seconds, model)


def set_best_value(value: float, *, metric: str) -> None:
    """Set the best value a search has reached so far."""
    _record_in_session(metrics.BEST_VALUE, value, metric=metric)


def _count_epochs(epochs: int, seconds: float, model: str) -> None:
    _record_in_session(metrics.EPOCHS, epochs, model=model)
    _record_in_session(metrics.EPOCH_SECONDS, seconds, model=model)


def _key(metric: Metric, labels: dict[str, str]) -> tuple[str, ...]:
    assert labels.keys() == set(metric.labels)
    return tuple(labels[name] for name in metric.labels)


def _in_session() -> bool:
    ray = sys.modules.get("ray")  # importing it takes a second; a process in a session has imported it
    is_initialized = getattr(ray, "is_initialized", None)  # another thread may be half-way through that import
    return is_initialized is not None and bool(is_initialized())


def _record_in_session(metric: Metric, value: float, /, **labels: str) -> None:
    if _in_session():
        _record(metric, value, labels)


def _record(metric: Metric, value: float, labels: dict[str, str]) -> None:
    # `Counter.inc` refuses zero, without which a series is first seen at its full value; this is what `inc` calls.
    _of_ray(metric)._record(float(value), labels)


@cache
def _of_ray(metric: Metric) -> "Counter | Gauge":
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415 (takes a second where there is no session)

    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.says, tag_keys=metric.labels)
