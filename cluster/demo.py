"""`rayscan demo`: the whole line on generated films, every step the one a hospital would run.

    archive -> catalogue -> data set -> search -> scores -> query -> reports

The first archive is labelled, to learn from; the second is a night's delivery: JPEG, PNG and DICOM, no labels, some
files broken. It is scored twice, because the second time must find nothing to do.
"""

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.session import ray_session
from models.spec import DISCLAIMER
from pipelines.errors import InputError
from pipelines.evaluate import evaluate
from pipelines.ingest.audit import audit, render_audit
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.ingest.prepare import PrepareSettings, prepare
from pipelines.phantom import write_archive
from pipelines.results.query import ask
from pipelines.results.report import put_page, write_report
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.storage import open_store
from tuning.search import search
from tuning.search_settings import SearchSettings

MARKER = ".rayscan-demo"
"""Stands in a folder the demo made, so that it may empty it the next time, and no other."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What to look at, and what to type next."""

    test_auc: str
    """Of the best model, on test patients it never saw, with a 95 % interval."""
    night: Mapping[str, int]
    """Scans of the delivery by status."""
    second_run: str
    seconds: float
    open: tuple[str, ...]
    type_next: tuple[str, ...]
    notice: str = DISCLAIMER


def run_demo(out: str, *, patients: int = 480, trials: int = 8, time_budget_s: float = 240) -> DemoSummary:
    """Run the line below a local folder. The data are phantoms: the figures say that the line works, not how well.

    Raises `InputError` when the folder holds anything the demo did not make.
    """
    started = time.monotonic()
    folder = _fresh(Path(out).expanduser().absolute())
    at = {name: str(folder / name) for name in ("archive", "night", "catalog", "dataset", "study", "scores")}
    page = {name: str(folder / f"{name}.html") for name in ("audit", "study", "model", "evaluation", "night")}
    best = f"{at['study']}/best"

    films = write_archive(open_store(at["archive"]), patients=patients, seed=1, size=192)
    night = write_archive(
        open_store(at["night"]), patients=60, seed=2, size=(400, 900), layout="flat", formats=("jpeg", "png", "dicom"),
        broken=True,
    )  # fmt: skip
    log.info("generated a labelled archive of %d films and a night's delivery of %d files", films, night)
    build_catalog(at["archive"], at["catalog"], CatalogSettings(labels="path", inspect=True))
    put_page(render_audit(audit(at["catalog"])), page["audit"])
    with ray_session(working_on="demo"):
        prepare(at["catalog"], at["dataset"], PrepareSettings(size=128))
        search(
            at["dataset"],
            at["study"],
            SearchSettings(trials=trials, time_budget_s=time_budget_s, epochs=12, grace_epochs=4, resolutions=(64, 96)),
        )
        judged = evaluate(best, at["dataset"], "test", report=page["evaluation"])
        first = score(at["night"], best, at["scores"], ScoreSettings(shard_size=32))[-1]
        for subject, name in ((at["study"], "study"), (best, "model"), (at["scores"], "night")):
            write_report(subject, page[name])
        second = score(at["night"], best, at["scores"], ScoreSettings(shard_size=32))[-1]
    _log_answer(at["scores"])
    auc = judged.metrics["auc"]
    me = "rayscan" if shutil.which("rayscan") else sys.argv[0]
    return DemoSummary(
        test_auc=f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}) on {judged.films} films",
        night=first.counts,
        second_run=f"{second.planned} scans to do: nothing is scored twice",
        seconds=round(time.monotonic() - started, 1),
        open=tuple(page.values()),
        type_next=(
            f"{me} query {at['scores']} 'SELECT reason, count(*) FROM rejects GROUP BY reason'",  # noqa: S608
            f"{me} score {at['night']} --model {best} --out {at['scores']}",
            f"{me} catalog YOUR_FILMS --labels path --out my-catalog",
        ),
    )


def _fresh(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} holds files the demo did not make; give --out another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder


def _log_answer(scores: str) -> None:
    for row in ask(scores).to_pylist():
        log.info("%s %s: %d scans", row["status"], row["reason"], row["scans"])
