"""Every kind of page says what it must, loads nothing, escapes what it shows, and names what it cannot read."""

from pathlib import Path
from typing import Any

import pytest

from cluster.report import write_report
from models.statistics.calibration import Calibration
from pipelines.bundles import record_evaluation
from pipelines.errors import InputError
from pipelines.pages.evaluation import evaluation_page
from pipelines.pages.frame import duration, interval, share, time
from pipelines.pages.page_file import put_page
from pipelines.storage import Store, open_store
from tests.pipelines.pages.samples import (
    HOSTILE,
    MODEL_ID,
    Outcome,
    Page,
    entry,
    read_page,
    trial,
    write_bundle,
    write_run,
    write_study,
    written_report,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "it"))


class TestModel:
    def test_the_card_and_what_came_later(self, store: Store, tmp_path: Path) -> None:
        bundle = write_bundle(store.path, study="s3://studies/one", trial=7, training={"epochs": 8})
        page = written_report(store, tmp_path / "model.html")
        card = read_page((store.path / "card.html").read_text())
        assert bundle.model_id in page.text
        assert "study s3://studies/one" in page.text
        assert "Tested since 0 times" in page.text
        assert "None yet." in page.text
        assert "Ledger of later" not in card.text
        assert bundle.model_id not in card.text, "it is made from the card's hash"
        assert page.charts == card.charts
        told, _, _ = page.text.partition(" Ledger of later evaluations")
        assert told[told.index("Intended use") :] in card.text, "the same words in both"
        assert page.text[page.text.index(" Limits ") : page.text.index("What it is,")] in card.text

    def test_ledger(self, store: Store, tmp_path: Path) -> None:
        write_bundle(store.path)
        tested = entry("test", seed=1)
        record_evaluation(store.root, {**tested, "dataset": "s3://films/kermany", "when": "2026-11-21T09:31:00+00:00"})
        record_evaluation(store.root, {"split": "test"})
        page = written_report(store, tmp_path / "model.html")
        assert "Tested since 2 times" in page.text
        assert f"2026-11-21 09:31 UTC test 200 {interval(tested['metrics']['auc'])}" in page.text
        assert "not recorded test no figures recorded not recorded" in page.text

    def test_hostile_text_is_text(self, store: Store, tmp_path: Path) -> None:
        write_bundle(store.path, study=HOSTILE, training={HOSTILE: HOSTILE})
        record_evaluation(store.root, {"split": HOSTILE, "dataset": HOSTILE, "when": HOSTILE})
        page = written_report(store, tmp_path / "model.html")
        assert page.text.count(HOSTILE) == 3 + 3 + 2, "lineage, ledger, and the training settings among the CLAIM items"

    def test_a_changed_bundle_is_refused(self, store: Store, tmp_path: Path) -> None:
        write_bundle(store.path)
        store.put("evaluation.json", b"{}")
        with pytest.raises(InputError, match=r"evaluation\.json was changed"):
            write_report(store.root, str(tmp_path / "model.html"))


class TestStudy:
    def test_progress_and_leaderboard(self, store: Store, tmp_path: Path) -> None:
        diverged = trial(3, status="failed", error="the loss is nan; lower the learning rate")
        baseline = trial(0, 0.5, model="majority", kind="baseline", parameters='{"family": "majority"}')
        write_study(store, [trial(2, 0.91, status="pruned"), diverged, trial(1, 0.9, 0.9754), baseline])
        page = written_report(store, tmp_path / "study.html")
        assert "Trials 4 2 complete, 1 pruned, 1 failed" in page.text
        assert "Best AUC 0.9754 trial 1, cnn" in page.text
        assert "Time of all trials 4 min 00 s" in page.text
        assert "First start to last end 4 min 00 s" in page.text
        assert "1 1 cnn 0.9754 2 1 min 00 s complete cnn_depth 3 · learning_rate 0.002718" in page.text
        assert "2 2 cnn 0.9100 1 1 min 00 s pruned" in page.text
        assert "3 0 majority (baseline) 0.5000" in page.text
        assert "3 cnn failed 1 min 00 s the loss is nan; lower the learning rate" in page.text
        assert page.charts[:2] == ["AUC of each trial; the best so far ends at 0.9754"] * 2
        assert "Found out when the search ends." in page.text

    def test_the_promoted_bundle(self, store: Store, tmp_path: Path) -> None:
        write_study(store, [trial(0, 0.97)])
        bundle = write_bundle(store.path / "best")
        page = written_report(store, tmp_path / "study.html")
        assert interval(bundle.evaluation["val"]["metrics"]["auc"]) in page.text
        assert f"Bundle of the winner: {store.root}/best , model {bundle.model_id}" in page.text

    def test_hostile_text_is_text(self, store: Store, tmp_path: Path) -> None:
        parameters = '{"family": "cnn", "note": "' + HOSTILE + '"}'
        failed = trial(1, status="failed", error=HOSTILE, parameters=parameters)
        write_study(store, [trial(0, 0.9, 0.8, model=HOSTILE, parameters=parameters), failed])
        assert written_report(store, tmp_path / "study.html").text.count(HOSTILE) >= 5

    @pytest.mark.parametrize(
        ("trials", "says"),
        [
            (None, "No trial has ended yet."),
            ([trial(0, status="failed", error="out of memory")], "No trial has a result yet."),
        ],
    )
    def test_a_study_without_a_result(
        self, store: Store, tmp_path: Path, trials: list[dict[str, Any]] | None, says: str
    ) -> None:
        write_study(store, trials)
        page = written_report(store, tmp_path / "study.html")
        assert says in page.text
        assert page.charts == []

    def test_many_and_hopeless_trials(self, store: Store, tmp_path: Path) -> None:
        good = [trial(n, 0.95, 0.96 + n / 10_000, seconds=4000.0) for n in range(40)]
        lost = trial(40, 0.31, status="pruned", seconds=30_000.0)
        write_study(store, [*good, lost])
        page = written_report(store, tmp_path / "study.html")
        assert "Trials 41 40 complete, 1 pruned, 0 failed" in page.text
        assert "Core-hours spent" in page.text
        assert "The other 21 trials" in page.text

    @pytest.mark.parametrize(
        ("key", "content"),
        [("study.json", b"{"), ("study.json", b"[]"), ("trials.parquet", b"not a table"), ("findings.json", b"{")],
    )
    def test_broken_files_are_named(self, store: Store, tmp_path: Path, key: str, content: bytes) -> None:
        write_study(store, [trial(0, 0.9)])
        store.put(key, content)
        with pytest.raises(InputError, match=key):
            write_report(store.root, str(tmp_path / "study.html"))


class TestEvaluation:
    def page(self, *, model: str = "cnn", calibration: Calibration | None = None) -> Page:
        told = entry("test", seed=1, calibration=calibration)
        return read_page(evaluation_page(told, model=model, model_id=MODEL_ID, dataset="s3://films/kermany"))

    def test_figures_and_charts(self) -> None:
        page, metrics = self.page(), entry("test", seed=1)["metrics"]
        assert "Evaluation: cnn on test" in page.text
        assert MODEL_ID in page.text
        assert interval(metrics["auc"]) in page.text
        assert f"Missed {metrics['fn']} of {metrics['positives']} with pneumonia" in page.text
        assert "virus" in page.text
        kinds = [chart.split()[0] for chart in page.charts]
        assert kinds == ["ROC", "Precision-recall", "Confusion", "Histogram", "Calibration:"]
        told = entry("test", seed=1)
        assert interval(told["over_patients"]["mcc"]) in page.text
        assert interval(told["predictive_values"][0]["ppv"]) in page.text

    def test_hostile_text_is_text_in_charts_too(self) -> None:
        calibration = Calibration(temperature=1.0, operating_points={HOSTILE: 0.4}, default=HOSTILE)
        page = self.page(model=HOSTILE, calibration=calibration)
        assert page.text.count(HOSTILE) >= 5


class TestWriting:
    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ({"compare": "a,b"}, "is a bundle; to compare models use rayscan evaluate --against"),
            ({"thumbnails": 3}, "is a bundle; thumbnails can be had of scores only"),
        ],
    )
    def test_what_a_bundle_has_not(self, store: Store, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
        write_bundle(store.path)
        with pytest.raises(InputError, match=says):
            write_report(store.root, str(tmp_path / "r.html"), **asked)

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ({"compare": "a"}, "--compare takes two model ids"),
            ({"compare": "a,b,c"}, "--compare takes two model ids"),
            ({"compare": "a,b", "thumbnails": 2}, "thumbnails belong to the night report"),
            ({"thumbnails": -1}, "thumbnails are out of range; choose 0 to 100"),
            ({"thumbnails": 101}, "thumbnails are out of range; choose 0 to 100"),
        ],
    )
    def test_what_cannot_be_asked_of_scores(
        self, store: Store, tmp_path: Path, asked: dict[str, Any], says: str
    ) -> None:
        write_run(store, 0, [Outcome(1, probability=0.3)])
        with pytest.raises(InputError, match=says):
            write_report(store.root, str(tmp_path / "r.html"), **asked)

    @pytest.mark.parametrize("made", [True, False])
    def test_an_unknown_folder_says_what_was_looked_for(self, tmp_path: Path, made: bool) -> None:
        folder = tmp_path / "strange"
        if made:
            folder.mkdir()
        with pytest.raises(InputError, match=r"strange: nothing to report on.*study\.json.*bundle\.json.*runs/"):
            write_report(str(folder), str(tmp_path / "r.html"))
        assert not (tmp_path / "r.html").exists()

    @pytest.mark.parametrize("out", ["", "new/", "s3://bucket"])
    def test_a_page_needs_a_file_name(self, tmp_path: Path, out: str) -> None:
        target = out if "://" in out else f"{tmp_path}/{out}"
        with pytest.raises(InputError, match="a report is one file"):
            put_page("page", target)

    def test_folders_are_made(self, tmp_path: Path) -> None:
        out = tmp_path / "new" / "deep" / "page.html"
        assert put_page("page é", str(out)) == f"file://{out}"
        assert out.read_text() == "page é"


def test_numbers_read_as_people_write_them() -> None:
    assert share(3, 4) == "75.0 %"
    assert (share(1, 100_000), share(99_999, 100_000), share(0, 5), share(5, 5)) == (
        "<0.1 %",
        ">99.9 %",
        "0.0 %",
        "100.0 %",
    )
    assert share(0, 0) == "\N{EN DASH}"
    assert [duration(s) for s in (0.5, 59.7, 200, 3900)] == ["0.5 s", "1 min 00 s", "3 min 20 s", "1 h 05 min"]
    assert interval({"value": 0.98712, "low": 0.981, "high": 0.9919}) == "0.987 (0.981\N{EN DASH}0.992)"
    assert time("2026-11-20T03:12:44+00:00") == "2026-11-20 03:12 UTC"
    assert time("yesterday") == "yesterday"
