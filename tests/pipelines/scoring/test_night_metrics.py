"""What a night tells Prometheus: the same as its record, each counter from 0, and enough to see that it died."""

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines import metrics
from pipelines.contracts import STATUS_OF_REASON, Status
from pipelines.scoring import night_metrics
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.night_metrics import NightMetrics
from pipelines.scoring.plan import Plan
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.scoring.score import ScoreShard
from pipelines.storage import Store, open_store
from pipelines.table.drift import OTHER_SITES, DriftFinding
from pipelines.table.record import last_success
from tests.pipelines.scoring.archive import BAD, GOOD
from tests.pipelines.scoring.test_ending import TOTAL, planned

SETTINGS = ScoreSettings(shard_size=TOTAL, report=False)

Samples = dict[str, dict[tuple[str, ...], float]]


def read(night: NightMetrics) -> Samples:
    """Name -> the labels beyond the scores and the model, sorted by their names -> value."""
    found: Samples = {}
    for family in text_string_to_metric_families(night.values.text().decode()):
        for sample in family.samples:
            own = tuple(value for name, value in sorted(sample.labels.items()) if name not in metrics.NIGHT)
            found.setdefault(sample.name, {})[own] = sample.value
    return found


@pytest.fixture
def run(tmp_path: Path, archive: Store, bundle: Path) -> tuple[Store, Plan, dict[str, object]]:
    """The scores of a run whose only part is written and not recorded, its plan, and what its actor said."""
    out = open_store(str(tmp_path / "scores"))
    plan = planned(out, archive, bundle)
    said = ScoreShard(out.root, plan, choose_layout(1, 0, 1))({"shard": np.array([0])})
    return out, plan, {name: value for name, (value,) in said.items()}


def test_an_actor_says_what_became_of_its_scans_also_of_a_part_that_was_there(
    run: tuple[Store, Plan, dict[str, object]],
) -> None:
    out, plan, summary = run
    assert json.loads(json.dumps(summary)) == summary
    expected = sorted([*([*outcome, None, 1] for outcome in BAD.values()), ["scored", None, None, GOOD]], key=str)
    assert sorted(json.loads(str(summary["counts"])), key=str) == expected
    again = ScoreShard(out.root, plan, choose_layout(1, 0, 1))({"shard": np.array([0])})
    assert sorted(json.loads(again["counts"][0]), key=str) == expected
    assert again.keys() == summary.keys()


def test_shards_are_counted_from_zero(run: tuple[Store, Plan, dict[str, object]]) -> None:
    _, plan, summary = run
    night = NightMetrics("s")
    night._begin_counters()
    before = read(night)
    assert before["rayscan_scans_total"] == {("scored",): 0, ("rejected",): 0, ("unreadable",): 0, ("failed",): 0}
    reasons = {(reason.value, status.value) for reason, status in STATUS_OF_REASON.items() if status != Status.REMOVED}
    assert before["rayscan_unscored_total"] == dict.fromkeys(reasons, 0)
    night.begin_run(plan, TOTAL)
    assert (read(night)["rayscan_backlog"], read(night)["rayscan_planned"]) == ({(): TOTAL}, {(): TOTAL})
    night.reading(lambda done: None)(TOTAL)
    night.end_shard(summary)
    after = read(night)
    assert after["rayscan_scans_total"] == {("scored",): GOOD, ("rejected",): 3, ("unreadable",): 4, ("failed",): 0}
    assert {key for key, scans in after["rayscan_unscored_total"].items() if scans} == {
        (reason, status) for status, reason in BAD.values()
    }
    assert after.keys() - before.keys() >= {"rayscan_done", "rayscan_run_info"}
    assert (after["rayscan_read_total"], after["rayscan_done"], after["rayscan_backlog"]) == (
        {(): TOTAL},
        {(): TOTAL},
        {(): 0},
    )
    assert after["rayscan_stage_seconds_total"].keys() == {("fetch",), ("decode",), ("infer",), ("write",)}
    assert all(seconds > 0 for seconds in after["rayscan_stage_seconds_total"].values())
    assert after["rayscan_bytes_total"][()] == summary["bytes"]


def test_a_resumed_night_and_one_with_nothing_new_are_successes(
    run: tuple[Store, Plan, dict[str, object]], archive: Store, bundle: Path
) -> None:
    out, plan, _ = run
    seen: list[Samples] = []
    night = NightMetrics(out.root, [lambda values: seen.append(read(values))])
    began = datetime.now(UTC).timestamp()
    resumed, new = score(archive.root, str(bundle), out.root, SETTINGS, metrics=night)
    assert (resumed.planned, new.planned) == (TOTAL, 0)
    at_work, over = seen[0], seen[-1]
    assert at_work["rayscan_running"] == {(): 1}
    assert at_work["rayscan_lease_info"] == {(os.uname().nodename, str(os.getpid())): 1}
    assert abs(at_work["rayscan_lease_renewed_timestamp_seconds"][()] - began) < 60
    assert "rayscan_last_success_timestamp_seconds" not in at_work
    assert over["rayscan_last_success_timestamp_seconds"][()] > began
    assert (over["rayscan_running"], over["rayscan_exit_code"], over["rayscan_backlog"]) == ({(): 0}, {(): 0}, {(): 0})
    assert not any(name.startswith("rayscan_lease") for name in over)
    assert sum(over["rayscan_scans_total"].values()) == 0, "an earlier attempt scored them"
    assert over["rayscan_last_run_scans"] == {(status,): 0 for status in new.counts}
    then = last_success(out, plan.model_id)
    assert then is not None
    assert then.isoformat() in {resumed.finished, new.finished}  # of two runs of one second either is the newest

    later = NightMetrics(out.root, [lambda values: seen.append(read(values))])
    score(archive.root, str(bundle), out.root, SETTINGS, metrics=later)
    assert read(later)["rayscan_last_success_timestamp_seconds"][()] > then.timestamp()
    assert seen[-2]["rayscan_last_success_timestamp_seconds"][()] >= then.timestamp(), "known before it ended"


def test_the_counts_of_a_record_and_its_oldest_file(
    run: tuple[Store, Plan, dict[str, object]], archive: Store, bundle: Path
) -> None:
    out, plan, _ = run
    oldest = min(info.modified for chunk in archive.list() for info in chunk)
    assert plan.oldest is not None
    assert abs(datetime.fromisoformat(plan.oldest) - oldest).total_seconds() < 1e-3
    night = NightMetrics(out.root)
    record, _ = score(archive.root, str(bundle), out.root, SETTINGS)
    left_out = replace(record, quarantined=[{"scans": 3}, {"scans": 4}], lost_workers=2)
    night.record(left_out, [])
    now = read(night)
    assert now["rayscan_last_run_scans"] == {(status,): scans for status, scans in record.counts.items()}
    assert (now["rayscan_quarantined_scans"], now["rayscan_lost_workers"]) == ({(): 7}, {(): 2})


def test_the_last_success_is_that_of_the_model_that_left_nothing_out(tmp_path: Path) -> None:
    out = open_store(str(tmp_path))
    assert last_success(out, "m") is None
    good = {"model_id": "m", "reasons": {"blank": 3}, "finished": "2026-11-26T03:00:00+00:00"}
    runs = {
        "1": good,
        "2": good | {"model_id": "other", "finished": "2026-11-27T03:00:00+00:00"},
        "3": good | {"quarantined": [{"scans": 2}]},
        "4": good | {"reasons": {"access_denied": 1}},
        "5": {"model_id": "m"},
        "6": {},
    }
    for run_id, record in runs.items():
        out.put(f"runs/{run_id}/run.json", json.dumps(record).encode())
    out.put("runs/7/run.json", b"damaged")
    assert last_success(out, "m") == datetime(2026, 11, 26, 3, tzinfo=UTC)


def test_sites_are_bounded(monkeypatch: pytest.MonkeyPatch, run: tuple[Store, Plan, dict[str, object]]) -> None:
    monkeypatch.setattr(night_metrics, "MOST_SITES", 2)
    night = NightMetrics("s")
    counts = [["scored", None, site, 10] for site in ("a", "b", "c", "d", "a", None)]
    night.end_shard({**run[2], "counts": json.dumps(counts)})
    assert read(night)["rayscan_site_scans"] == {
        ("a", "scored"): 20,
        ("b", "scored"): 10,
        (OTHER_SITES, "scored"): 20,
    }


def test_only_the_largest_sites_have_gauges_of_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_metrics, "MOST_SITES", 2)
    night = NightMetrics("s")
    sizes = {None: 1111, "a": 1, "b": 1000, "c": 10, "d": 100}
    findings = [
        DriftFinding(site=site, quantity=quantity, n=n, psi=psi, ks=None, level="alarm", note="", share=share)
        for site, n in sizes.items()
        for quantity, psi, share in (("ood_score", 0.3, None), ("unfamiliar_share", None, 0.25))
    ]
    night.set_drift([*findings, replace(findings[0], quantity="grey_mean", level="too_few")])
    now = read(night)
    sites = (metrics.ALL_SITES, "b", "d")
    assert now["rayscan_drift_level"] == {(q, s): 2 for q in ("ood_score", "unfamiliar_share") for s in sites}
    assert now["rayscan_drift_psi"] == {("ood_score", site): 0.3 for site in sites}
    assert now["rayscan_drift_share"] == {("unfamiliar_share", site): 0.25 for site in sites}


def test_each_metric_of_a_night_is_set_somewhere() -> None:
    """By its name in the source; those of a search are set in `telemetry.py`."""
    code = Path(night_metrics.__file__).read_text()
    named = set(re.findall(r"metrics\.([A-Z_]+)", code))
    of_a_night = {name for name, value in vars(metrics).items() if getattr(value, "labels", ())[:2] == metrics.NIGHT}
    assert of_a_night - named == set()
