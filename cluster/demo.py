"""`rayscan demo`: the whole pipeline on generated films, every step the one a hospital would run.

    archive -> catalogue -> data set -> search -> scores -> query -> reports -> index.html

The archive is labelled, to learn from. The first night is what the same hospital would deliver next: films of the same
scanner, sizes and share of pneumonia, but unlabelled, as JPEG, PNG and DICOM, some files broken. It is scored twice,
because the second time must find nothing to do. The second night comes from another scanner, on purpose: drift must
raise an alarm there, and none on the first.
"""

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cluster import preflight
from cluster.report import write_report
from cluster.session import ray_session
from models.spec import DISCLAIMER
from pipelines.evaluate import evaluate
from pipelines.ingest.audit import audit
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.ingest.prepare import PrepareSettings, prepare
from pipelines.pages.audit import audit_page
from pipelines.pages.frame import data_uri
from pipelines.pages.night.demo import DemoFigures, demo_page, drift_in_words
from pipelines.pages.page_file import put_page
from pipelines.phantom import FOREIGN_SCANNER, HOME_SCANNER, Scanner, draw_patient, render, write_archive
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.storage import open_store
from pipelines.table.query import ask
from pipelines.table.record import RunRecord
from tuning.search.driver import search
from tuning.search.settings import SearchSettings

Widths = tuple[int, int]

CATALOG: Final = CatalogSettings(labels="path", inspect=True, val_fraction=0.25)
"""More validation films than usual: drift compares a night with them, and few patients, with up to four similar films
each, would differ from the night's by chance."""

ON_PURPOSE: Final = "on purpose: its films come from another scanner"
NIGHTS: Final = {"night": "first night", "foreign": "night from another scanner"}

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What the demo made, what to type next and, last, what to open."""

    test_auc: str
    """AUC of the best model with a 95 % interval, on test patients that it never saw."""
    night: Mapping[str, int]
    """Scans of the first night by status."""
    night_drift: str
    second_run: str
    foreign_night: Mapping[str, int]
    """Scans of the night from another scanner, by status."""
    foreign_drift: str
    seconds: float
    type_next: tuple[str, ...]
    notice: str = DISCLAIMER
    open: str
    """The page that links all others. The last field, because people read the last line."""


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where a demo writes everything."""

    folder: Path

    def uri(self, name: str) -> str:
        """URI of an archive, a catalogue, a data set, a study or scores."""
        return str(self.folder / name)

    def page(self, name: str) -> str:
        return str(self.folder / f"{name}.html")

    @property
    def best(self) -> str:
        return f"{self.uri('study')}/best"


def run_demo(
    out: str,
    *,
    patients: int = 480,
    night_patients: int = 120,
    trials: int = 5,
    epochs: int = 12,
    time_budget_s: float = 240,
    widths: Widths = (160, 288),
    seed: int = 1,
) -> DemoSummary:
    """Run the pipeline in a local folder. The data are phantoms: the figures show that it works, not how well.

    The archive has films of `patients` patients, each night of `night_patients`; `seed` generates all films. `widths`
    are those of the narrowest and the widest film in pixels, in the archive and in both nights: others would be drift.
    Raises `InputError` when the folder holds anything the demo did not make.
    """
    started = time.monotonic()
    at = _Places(folder=_fresh(Path(out).expanduser().absolute()))
    films = write_archive(open_store(at.uri("archive")), patients=patients, seed=seed, size=widths)
    log.info("generated a labelled archive of %d films", films)
    _deliver(at.uri("night"), night_patients, widths, seed + 1, HOME_SCANNER)
    with ray_session(working_on="demo"):
        build_catalog(at.uri("archive"), at.uri("catalog"), CATALOG)
        put_page(audit_page(audit(at.uri("catalog"))), at.page("audit"))
        prepare(at.uri("catalog"), at.uri("dataset"), PrepareSettings(size=128))
        study = search(at.uri("dataset"), at.uri("study"), _search_settings(trials, epochs, time_budget_s))
        evaluation = evaluate(at.best, at.uri("dataset"), "test", report=at.page("evaluation"))
        for subject, name in ((at.uri("study"), "study"), (at.best, "model")):
            write_report(subject, at.page(name))
        night = _score(at, "night")
        second = score(at.uri("night"), at.best, at.uri("scores"), ScoreSettings())[-1]
        log.info("now a night from another scanner, on purpose: drift must raise an alarm")
        _deliver(at.uri("foreign"), night_patients, widths, seed + 2, FOREIGN_SCANNER)
        foreign = _score(at, "foreign")
    _log_answer(at.uri("scores"))
    auc = evaluation.metrics["auc"]
    type_next = _type_next(at)
    figures = DemoFigures(
        films=films,
        patients=patients,
        trials=sum(study.trials.values()),
        test_auc=auc,
        test_films=evaluation.films,
        night=night,
        foreign=foreign,
        pictures=(_picture(HOME_SCANNER, seed), _picture(FOREIGN_SCANNER, seed)),
    )
    put_page(demo_page(figures, type_next), at.page("index"))
    return DemoSummary(
        test_auc=f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}) on {evaluation.films} films",
        night=night.counts,
        night_drift=drift_in_words(night),
        second_run=f"{second.planned} scans to do: nothing is scored twice",
        foreign_night=foreign.counts,
        foreign_drift=f"{drift_in_words(foreign)}, {ON_PURPOSE}",
        seconds=round(time.monotonic() - started, 1),
        type_next=type_next,
        open=at.page("index"),
    )


def _fresh(folder: Path) -> Path:
    preflight.check_demo(str(folder))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / preflight.DEMO_MARKER).touch()
    return folder


def _deliver(archive: str, patients: int, widths: Widths, seed: int, scanner: Scanner) -> None:
    """Write a night's films as a hospital stores them: in several formats, without labels, some of them broken."""
    store = open_store(archive)
    files = write_archive(
        store,
        patients=patients,
        seed=seed,
        size=widths,
        layout="flat",
        formats=("jpeg", "png", "dicom"),
        broken=True,
        scanner=scanner,
    )
    store.delete("labels.csv")
    log.info("generated a night's delivery of %d files", files)


def _search_settings(trials: int, epochs: int, time_budget_s: float) -> SearchSettings:
    return SearchSettings(
        trials=trials, time_budget_s=time_budget_s, epochs=epochs, grace_epochs=min(4, epochs), resolutions=(64, 96)
    )


def _score(at: _Places, night: str) -> RunRecord:
    """Score a night's delivery, and write its page beside the others."""
    record = score(at.uri(night), at.best, at.uri("scores"), ScoreSettings())[-1]
    log.info("the %s: drift %s", NIGHTS[night], drift_in_words(record))
    write_report(at.uri("scores"), at.page(night))
    return record


def _picture(scanner: Scanner, seed: int) -> str:
    """A film of the same patient in the same pose on any scanner, as a data URI."""
    rng = np.random.default_rng(seed)
    pixels, _ = render(draw_patient(rng, "bacteria"), rng, size=224, scanner=scanner)
    return data_uri(pixels)


def _type_next(at: _Places) -> tuple[str, ...]:
    me = "rayscan" if shutil.which("rayscan") else sys.argv[0]
    scores = at.uri("scores")
    return (
        f"{me} query {scores} 'SELECT reason, count(*) FROM rejects GROUP BY reason'",  # noqa: S608
        f"{me} score {at.uri('night')} --model {at.best} --out {scores}",
        f"{me} catalog YOUR_FILMS --labels path --out my-catalog",
    )


def _log_answer(scores: str) -> None:
    for row in ask(scores).to_pylist():
        log.info("%s %s: %d scans", row["status"], row["reason"], row["scans"])
