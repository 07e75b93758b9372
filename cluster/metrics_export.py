"""Where the metrics of a night go besides Ray's port, so that they outlive its driver and its cluster.

A file is what node_exporter's textfile collector reads on a machine that stays; a Pushgateway serves where none does.
Both get all values every few seconds and, with the exit code, at the end. Whatever fails here is a warning: the night
goes on. Nothing of a patient is among the values: counts, sites, the URI of the scores.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cluster.notify import exit_code
from models.errors import InputError

if TYPE_CHECKING:
    from pipelines.scoring.night_metrics import NightMetrics

log = logging.getLogger("rayscan")

JOB: Final = "rayscan"
PUSH_SECONDS: Final = 5.0
"""A gateway that takes longer is not there: what is renewed for Ray's port waits for it."""


@contextmanager
def exported(scores: str, file: str | None, gateway: str | None) -> Iterator["NightMetrics | None"]:
    """Metrics for the block to fill, written as they change and when the block ends, however it does.

    None if there is neither file nor gateway; then Ray's port alone has them.
    Raises `InputError` for a file that node_exporter would not read or that cannot be written, or no URL of a gateway.
    """
    sinks = [*([_to_file(file)] if file else []), *([_to_gateway(gateway)] if gateway else [])]
    if not sinks:
        yield None
        return
    from pipelines.scoring.night_metrics import NightMetrics  # DuckDB: half a second
    from pipelines.storage import open_store

    metrics = NightMetrics(open_store(scores).root, [_warning(*sink) for sink in sinks])
    try:
        yield metrics
    except BaseException as error:
        metrics.end(exit_code(error))
        raise
    metrics.end(0)


def _to_file(file: str) -> tuple[str, Callable[["NightMetrics"], None]]:
    path = Path(file)
    if "://" in file or path.suffix != ".prom":
        raise InputError(f"--metrics-file {file}: name a local file *.prom; node_exporter reads no other")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--metrics-file {file}: no folder that this user may write to; make it, or name another")

    def write(metrics: "NightMetrics") -> None:
        beside = path.with_name(f"{path.name}.{os.getpid()}")  # no .prom: a half is never read
        beside.write_bytes(metrics.values.text())
        beside.chmod(0o644)  # node_exporter is another user, and a night's umask may be 077
        beside.replace(path)

    return file, write


def _to_gateway(url: str) -> tuple[str, Callable[["NightMetrics"], None]]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("--metrics-push: no URL of a Pushgateway; write it as http://host:9091")
    if parts.username or parts.password or parts.query:
        raise InputError(
            "--metrics-push: the URL holds a password or a query, which `ps` and the dashboard would show; use a"
            " gateway that asks for none"
        )

    def push(metrics: "NightMetrics") -> None:
        from prometheus_client import push_to_gateway

        push_to_gateway(url, JOB, metrics.values, grouping_key=metrics.labels, timeout=PUSH_SECONDS)

    return url, push


def _warning(name: str, sink: Callable[["NightMetrics"], None]) -> Callable[["NightMetrics"], None]:
    """The sink, which says once that it fails, and raises nothing.

    It gets nothing before the model is known: a night that fails so early has nothing to say but its exit code, and
    would put that in the place of the last success, or of what a run at work says.
    """
    failed = False

    def guarded(metrics: "NightMetrics") -> None:
        nonlocal failed
        if not metrics.labels["model"]:
            return
        try:
            sink(metrics)
            failed = False
        except Exception as error:  # noqa: BLE001 (a strange gateway raises what it likes; it ends no night)
            log.log(logging.DEBUG if failed else logging.WARNING, "metrics were not written to %s (%s)", name, error)
            failed = True

    return guarded
