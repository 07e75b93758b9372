"""A small study, bundle and scores, written through the contracts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.report import write_report
from models.bundle import Bundle
from models.spec import DISCLAIMER, ModelSpec, Preprocessing
from models.statistics.calibration import Calibration
from models.statistics.evaluation import evaluation_entry
from models.statistics.operating_points import operating_points
from pipelines import contracts
from pipelines.storage import Store
from tests.pipelines.bundles import save_untrained
from tests.pipelines.table.parts import commit_part

HOSTILE = "<script>alert('$x')</script>"
EVENING = datetime(2026, 11, 19, 22, 0, tzinfo=UTC)
MODEL_ID = "00112233aabbccdd"
PATIENT_KEY = "5e" * 32


@dataclass(frozen=True)
class Outcome:
    """What a run of `write_run` is to hold, in groups of equal rows."""

    scans: int
    probability: float | None = None
    reason: str | None = None
    status: str = "scored"
    site: str | None = "north"
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Of contracts.PART, where they are to differ."""


def films(n: int = 200, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.str_]]:
    """Labels, probabilities and subtypes of n films."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.6).astype(np.int64)
    probability = 1 / (1 + np.exp(-rng.normal(4 * labels - 2, 1.5)))
    subtypes = np.where(labels == 1, np.where(rng.random(n) < 0.6, "bacteria", "virus"), "")
    return labels, probability.astype(np.float32), subtypes


def entry(split: str = "val", seed: int = 0, calibration: Calibration | None = None) -> dict[str, Any]:
    """An evaluation of the films above."""
    labels, probability, subtypes = films(seed=seed)
    return evaluation_entry(
        split=split,
        labels=labels,
        probability=probability,
        subtypes=subtypes,
        calibration=calibration or _calibration(),
    )


def write_bundle(folder: Path, **lineage: Any) -> Bundle:
    spec = ModelSpec(name="majority", preprocessing=Preprocessing(size=32))
    counts = {"train": {"films": 4684, "patients": 2490, "classes": {"NORMAL": 1208, "PNEUMONIA": 3476}}}
    return save_untrained(
        folder,
        spec,
        calibration=_calibration(),
        evaluation={"val": entry()},
        lineage={"counts": counts, "history": history(0.9, 0.95), "best_epoch": 2, **lineage},
    )


def history(*aucs: float) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "train_loss": 1 / epoch, "val_auc": auc, "val_loss": 1.1 / epoch, "seconds": 3.5}
        for epoch, auc in enumerate(aucs, start=1)
    ]


def trial(number: int, *aucs: float, status: str = "complete", **changes: Any) -> dict[str, Any]:
    """A row of contracts.TRIALS."""
    return {
        "trial_id": f"t{number}",
        "number": number,
        "kind": "search",
        "status": status,
        "model": "cnn",
        "parameters": json.dumps({"family": "cnn", "cnn_depth": 3, "learning_rate": 0.00271828}),
        "auc": max(aucs, default=None),
        "epochs": len(aucs),
        "history": json.dumps(history(*aucs)),
        "seconds": 60.0,
        "seed": number,
        "error": None,
        "finished_at": EVENING + timedelta(minutes=number + 1),
        **changes,
    }


def write_study(
    store: Store,
    trials: Sequence[Mapping[str, Any]] | None,
    *,
    findings: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> None:
    """A study with these settings; with None, one in which no trial has ended yet, or that has found nothing out."""
    settings = {"trials": 4, "search": "tpe", "time_budget_s": None, **chosen}
    study = {
        "dataset": "s3://films/kermany",
        "fingerprint": "9f3c",
        "space": {"families": ["cnn"]},
        "settings": settings,
    }
    store.put("study.json", json.dumps(study).encode())
    if trials is not None:
        put_table(store, "trials.parquet", trials, contracts.TRIALS)
    if findings is not None:
        store.put("findings.json", json.dumps(findings).encode())


def write_run(
    store: Store,
    night: int,
    outcomes: Sequence[Outcome],
    *,
    threshold: float = 0.5,
    model_id: str = MODEL_ID,
    **record: Any,
) -> str:
    """A run with one part; `state="unfinished"` leaves its record out. Returns its id."""
    began = EVENING + timedelta(days=night, minutes=0 if model_id == MODEL_ID else 30)
    run_id = f"{began:%Y%m%dT%H%M%SZ}-{night:06d}"
    rows = [
        _score(f"s3://hospital/scans/{night}-{group}-{number}.dcm", outcome, run_id, began, threshold) | outcome.columns
        for group, outcome in enumerate(outcomes)
        for number in range(outcome.scans)
    ]
    if rows:
        commit_part(store, run_id, 0, rows, model_id=model_id, day=began.date())
    unfinished = record.pop("state", None) == "unfinished"
    plan = {
        "run_id": run_id,
        "model_id": model_id,
        "source": "s3://hospital/scans",
        "date": f"{began:%Y-%m-%d}",
        "operating_point": "balanced",
        "planned": len(rows),
        "listed": 90_000,
        **record,
    }
    store.put(f"runs/{run_id}/plan.json", json.dumps(plan).encode())
    if not unfinished:
        counts = {status.value: sum(row["status"] == status for row in rows) for status in contracts.OUTCOMES}
        done = {"counts": counts, "seconds": 200.0, "scans_per_second": 140.3, "engine": "torch"}
        store.put(f"runs/{run_id}/run.json", json.dumps(plan | done).encode())
    return run_id


def put_table(store: Store, key: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    store.put(key, sink.getvalue().to_pybytes())


@dataclass
class Page(HTMLParser):
    """A page as read by a parser that accepts no unclosed tag."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data.split()

    @property
    def text(self) -> str:
        """What a person reads, with single spaces."""
        return " ".join(self.words)

    @property
    def images(self) -> list[dict[str, str | None]]:
        """Attributes of each picture that is no chart."""
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def marked(self, mark: str) -> int:
        """How many elements have this class."""
        return sum(mark in (attributes.get("class") or "").split() for _, attributes in self.tags)

    @property
    def charts(self) -> list[str]:
        """What each chart says it shows."""
        return [attributes["aria-label"] or "" for tag, attributes in self.tags if tag == "svg"]


def written_report(store: Store, out: Path, **options: Any) -> Page:
    """The page that `rayscan report` writes to `out` of what lies in the store, checked."""
    assert write_report(store.root, str(out), **options) == f"file://{out}"
    return read_page(out.read_text())


def read_page(html: str) -> Page:
    """Parse a page and check what holds for every page."""
    page = Page(html)
    assert DISCLAIMER in page.text[:300]
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    # Nothing is loaded and nothing runs
    assert not any(scheme in html for scheme in ("http:", "https:", "url(http", "@import"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"}
    assert all((attributes["src"] or "").startswith("data:image/jpeg;base64,") for attributes in page.images)
    assert all(value is None or value.startswith("#") for value in _links(page))
    assert PATIENT_KEY not in html
    return page


def _links(page: Page) -> Iterator[str | None]:
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        linking = ("href", "xlink:href") if tag == "img" else ("href", "src", "xlink:href")
        yield from (value for name, value in attributes.items() if name in linking)


def _calibration() -> Calibration:
    labels, probability, _ = films()
    return Calibration(temperature=1.37, operating_points=operating_points(labels, probability).thresholds)


def _score(uri: str, outcome: Outcome, run_id: str, began: datetime, threshold: float) -> dict[str, Any]:
    p = outcome.probability
    return {
        "scan_id": contracts.scan_id(uri, "e"),
        "uri": uri,
        "etag": "e",
        "site": outcome.site,
        "patient_key": PATIENT_KEY,
        "status": outcome.status,
        "reason": outcome.reason,
        "probability": p,
        "class_probabilities": None if p is None else [1 - p, p],
        "prediction": None if p is None else contracts.LABELS[p >= threshold],
        "operating_point": None if p is None else "balanced",
        "decoder_version": "1",
        "plan_version": int(run_id[-6:]),
        "supersedes": True,  # some tests write a file twice
        "run_id": run_id,
        "shard": 0,
        "scored_at": began,
    }
