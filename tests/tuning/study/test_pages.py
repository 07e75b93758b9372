"""The page of a study is readable with a few trials and with hundreds, and draws what the study has."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.report import write_report
from pipelines.errors import InputError
from pipelines.pages.frame import DASH
from pipelines.storage import Store, open_store
from tests.pipelines.pages.samples import EVENING, Page, put_table, read_page, trial, write_study
from tuning.study.pages.space_charts import grid_tables
from tuning.study.records import best_trial, front_of, leaderboard
from tuning.study.store import read_trials


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "study"))


def report(store: Store, out: Path) -> Page:
    write_report(store.root, str(out))
    return read_page(out.read_text())


def trials(count: int) -> list[dict[str, Any]]:
    """A search of two families with two baselines; the bigger the learning rate the better, every third is pruned."""
    rng = np.random.default_rng(0)
    rows = [
        trial(0, 0.5, model="majority", kind="baseline", parameters='{"family": "majority"}'),
        trial(1, 0.7, 0.8, model="mlp", kind="baseline", parameters='{"family": "mlp", "resolution": 64}'),
    ]
    for number in range(2, count):
        family = "cnn" if number % 4 else "mlp"
        rate = float(10 ** rng.uniform(-4, -2))
        parameters: dict[str, Any] = {"family": family, "learning_rate": rate, "batch_size": int(rng.choice([16, 32]))}
        if family == "cnn":
            parameters["cnn_depth"] = int(rng.choice([3, 4, 5]))
        value = 0.98 + 0.05 * np.log10(rate) / 2 + 0.005 * float(rng.normal())
        pruned = number % 3 == 0
        epochs = [value - 0.1, value - 0.05] if pruned else [value - 0.1, value - 0.05, value - 0.01, value]
        status = "pruned" if pruned else "complete"
        rows.append(trial(number, *epochs, status=status, model=family, parameters=json.dumps(parameters)))
    return rows


def findings(rows: list[dict[str, Any]], *, importance: bool) -> dict[str, Any]:
    """As `tuning/study/findings.py` writes it."""
    ranked = sorted(rows, key=lambda row: -row["auc"])
    judged = {
        row["trial_id"]: {
            "auc": {"value": row["auc"], "low": row["auc"] - 0.02, "high": row["auc"] + 0.01},
            "p_value": None if place == 0 else 0.04 * place,
            "chosen": 1.0 if place == 0 else 0.0,
        }
        for place, row in enumerate(ranked)
    }
    best = ranked[0]["auc"]
    selection = {
        "trials": len(rows), "films": 785, "patients": 500, "splits": 200, "top": 1, "auc": best,
        "elsewhere": best - 0.0123, "optimism": 0.0123,
    }  # fmt: skip
    difference = {"value": 0.0021, "low": -0.001, "high": 0.0052}
    test = {"difference": difference, "p_value": 0.2}
    ensemble = {
        "members": {ranked[0]["trial_id"]: 0.75, ranked[1]["trial_id"]: 0.25},
        "auc": {"value": best + 0.004, "low": best, "high": best + 0.006},
        "gain": {"ensemble": 0.95, "single": 0.9479, "members": 2.5, "test": test},
        "milliseconds": 9.0, "single_milliseconds": 2.5,
    }  # fmt: skip
    shares = {"learning_rate": 0.8, "batch_size": 0.2}
    mattered = {"trials": len(rows) - 2, "fanova": shares, "ped_anova": {**shares, "cnn_depth": 0.1}}
    return {
        "trials": judged, "selection": selection, "ensemble": ensemble, "importance": mattered if importance else None
    }  # fmt: skip


@pytest.mark.parametrize(("count", "slices", "families"), [(3, 0, 0), (30, 3, 2), (300, 3, 2)])
def test_pages_of_few_and_of_many_trials(store: Store, tmp_path: Path, count: int, slices: int, families: int) -> None:
    rows = trials(count)
    write_study(store, rows, findings=findings(rows, importance=count > 20), cpus_per_trial=2)
    page = report(store, tmp_path / "study.html")
    assert (tmp_path / "study.html").stat().st_size < 1_500_000
    assert len([chart for chart in page.charts if "a mark per trial" in chart]) == slices
    assert len([chart for chart in page.charts if chart.startswith("Parallel coordinates")]) == families
    assert ("Importance of parameters; first learning_rate" in page.charts) == (count > 20)
    assert ("Estimated from 20 trials or more" in page.text) == (count < 20)
    assert (f"The other {count - 20} trials" in page.text) == (count > 20)
    assert page.text.count("cnn_depth") >= slices, "on the leaderboard, too"
    assert "\\mathdefault" not in page.html, "matplotlib writes its own letters for powers of ten"


@pytest.mark.parametrize(
    ("selection", "told"),
    [({"copies": True}, "and of their perturbed copies."), ({"copies": False}, "as they are."), ({}, "as they are.")],
)
def test_the_page_says_whether_copies_had_a_say(
    store: Store, tmp_path: Path, selection: dict[str, bool], told: str
) -> None:
    """Findings of earlier versions do not tell; copies had none then."""
    rows = [trial(number, 0.9, objective=-0.2 - number / 10) for number in range(3)]
    found = findings(rows, importance=False)
    found["selection"] |= selection
    write_study(store, rows, objectives=["log_score"], findings=found)
    text = report(store, tmp_path / "study.html").text
    assert f"Within a half the choice was by the log score of its films {told}" in text


def test_the_chart_of_the_best_has_one_baseline_beside_them(store: Store, tmp_path: Path) -> None:
    """The majority, far below all others, would press these into one line."""
    rows = [
        trial(0, 0.5, model="majority", kind="baseline"),
        trial(1, 0.97, model="mlp", kind="baseline"),
        *(trial(number, 0.98 + number / 1000) for number in range(2, 11)),
    ]
    write_study(store, rows, findings=findings(rows, importance=False))
    html = report(store, tmp_path / "study.html").html
    assert ">1 mlp<" in html
    assert ">2 cnn<" in html
    assert ">0 majority<" not in html


def test_what_the_choice_flatters_and_what_an_ensemble_gains(store: Store, tmp_path: Path) -> None:
    rows = [trial(0, 0.9), trial(1, 0.95, 0.96), trial(2, 0.8)]
    write_study(store, rows, findings=findings(rows, importance=False))
    text = report(store, tmp_path / "study.html").text
    assert "AUC to expect here 0.9477 on other patients of this archive" in text
    assert "expect about 0.0123 less than the AUC above on other films of this archive" in text
    assert f"1 1 cnn 0.9600 (0.940{DASH}0.970) {DASH} 100.0 % 2 1 min 00 s complete" in text
    assert f"2 0 cnn 0.9000 (0.880{DASH}0.910) 0.04 0.0 % 1" in text
    assert "a gain of +0.0021 (95 % interval -0.0010 to +0.0052, p = 0.2" in text
    assert "That may be chance." in text
    assert "It costs 3.6 times as much: 9 ms per film instead of 2.5" in text
    assert "1 cnn 0.75 0.9600 0 cnn 0.25 0.9000" in text


def test_what_held_out_patients_say_of_the_best(store: Store, tmp_path: Path) -> None:
    rows = [trial(0, 0.9), trial(1, 0.95, 0.96)]
    found = findings(rows, importance=False)
    write_study(store, rows, findings=found)
    assert "Held out" not in report(store, tmp_path / "without.html").text
    pooled = {"value": 0.9412, "low": 0.93, "high": 0.95}
    common = {"folds": 5, "seed": 1, "films": 4447, "seconds": 120.0}
    best = {
        **common, "trial_id": rows[1]["trial_id"], "number": 1, "search_auc": 0.96, "optimism": 0.0187,
        "auc": {"mean": 0.9413, "sd": 0.0051, "worst": 0.93, "worst_fold": 2}, "pooled": pooled, "error": None,
    }  # fmt: skip
    failed = {
        **best, "trial_id": "gone", "number": 0, "auc": None, "pooled": None, "optimism": None, "error": "fold 1: no"
    }  # fmt: skip
    write_study(store, rows, findings={**found, "confirmed": [best, failed]})
    text = report(store, tmp_path / "with.html").text
    assert f"1 cnn 0.9600 0.9413 (0.0051) 0.9412 (0.930{DASH}0.950) +0.0187 5 4,447 2 min 00 s" in text
    assert f"0 {DASH} 0.9600 fold 1: no 5 4,447" in text
    assert "had no part in the choice of the trial" in text


def test_the_cost_counts_cores_and_failed_trials(store: Store, tmp_path: Path) -> None:
    late = trial(1, 0.9, seconds=120.0)
    failed = trial(0, status="failed", seconds=1200.0)
    write_study(store, [late, failed], cpus_per_trial=4)
    page = report(store, tmp_path / "study.html")
    assert "Core-minutes spent" in page.text
    ticks, _, _ = page.text.partition(" Core-minutes spent")
    assert "88" in ticks.split()[-8:], "1,320 s on 4 cores are 88 minutes, where the only mark of the chart is"


def test_a_grid_is_shown_as_a_table(store: Store, tmp_path: Path) -> None:
    rows = [trial(0, 0.5, model="majority", kind="baseline", parameters='{"family": "majority"}')]
    combinations = itertools.product((0.001, 0.003), (0.0, 1.0), (3, 4))
    for number, (rate, augment, depth) in enumerate(combinations, start=1):
        parameters = {"family": "cnn", "learning_rate": rate, "augment": augment, "cnn_depth": depth}
        rows.append(trial(number, 0.9 + number / 100, parameters=json.dumps(parameters)))
    failed = trial(8, status="failed", parameters=rows.pop()["parameters"])
    write_study(store, [*rows, failed], search="grid")
    page = report(store, tmp_path / "study.html")
    assert "The grid" in page.text
    assert (
        "cnn cnn_depth 3 cnn_depth 4"
        " learning_rate 0.001 · augment 0 0.9100 0.9200"
        " learning_rate 0.001 · augment 1 0.9300 0.9400"
        " learning_rate 0.003 · augment 0 0.9500 0.9600"
        f" learning_rate 0.003 · augment 1 0.9700 {DASH}" in page.text
    )
    (table,) = grid_tables(leaderboard(read_trials(store)))
    shades = [cell["shade"] for row in table["rows"] for cell in row["cells"] if cell]
    assert shades == sorted(shades)
    assert shades[-1] == 0.5


def test_no_grid_where_there_was_none(store: Store, tmp_path: Path) -> None:
    write_study(store, trials(6))
    assert "The grid" not in report(store, tmp_path / "study.html").text


def test_a_second_objective_is_drawn_where_it_was_measured(store: Store, tmp_path: Path) -> None:
    rows = [trial(0, 0.90), trial(1, 0.95), trial(2, 0.93), trial(3, 0.99), trial(4, 0.99)]
    write_study(store, rows)
    table = pq.read_table(pa.BufferReader(store.get("trials.parquet")))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.set_column(table.column_names.index("latency_ms"), "latency_ms", pa.array([1.0, 2.0, 5.0, 40.0, None])),
        sink,
    )
    store.put("trials.parquet", sink.getvalue().to_pybytes())
    page = report(store, tmp_path / "study.html")
    assert "AUC against milliseconds per film; 3 trials are on the Pareto front" in page.charts
    assert sorted(trial.number for trial in front_of(read_trials(store))) == [0, 1, 3]
    put_table(store, "trials.parquet", rows, table.schema)
    assert not any("Pareto" in chart for chart in report(store, tmp_path / "study.html").charts)


def test_trials_with_the_same_parameters_and_odd_values(store: Store, tmp_path: Path) -> None:
    same = {"family": "cnn", "name": "x" * 90, "zero": 0.0}
    rows = [trial(number, 0.9, parameters=json.dumps({**same, "flag": number % 2 == 0})) for number in range(5)]
    rows.append(trial(5, 0.9, parameters=json.dumps({"family": "cnn", "name": 3}), finished_at=EVENING))
    write_study(store, rows)
    page = report(store, tmp_path / "study.html")
    assert [chart for chart in page.charts if chart.startswith("AUC by")] == [
        "AUC by name, a mark per trial",
        "AUC by flag, a mark per trial",
    ]


class TestBeside:
    def test_another_search_of_the_same_films(self, store: Store, tmp_path: Path) -> None:
        grid = open_store(str(tmp_path / "grid"))
        write_study(store, [trial(0, 0.95), trial(1, 0.97)])
        write_study(grid, [trial(0, 0.96), trial(1, status="failed", error="no such width")])
        write_report(store.root, str(tmp_path / "study.html"), compare=grid.root)
        html = (tmp_path / "study.html").read_text()
        assert "The best AUC so far of each search by core-minutes spent" in read_page(html).charts
        assert "study: 0.9700" in html
        assert "grid: 0.9600" in html

    @pytest.mark.parametrize(
        ("other", "measure", "best"), [("log_score", "log score", "-0.1100"), ("auc", "AUC", "0.9700")]
    )
    def test_by_what_both_looked_for_or_else_by_auc(
        self, store: Store, tmp_path: Path, other: str, measure: str, best: str
    ) -> None:
        grid = open_store(str(tmp_path / "grid"))
        write_study(store, [trial(0, 0.97, objective=-0.15), trial(1, 0.95, objective=-0.11)], objectives=["log_score"])
        write_study(grid, [trial(0, 0.96, objective=-0.13)], objectives=[other])
        write_report(store.root, str(tmp_path / "study.html"), compare=grid.root)
        html = (tmp_path / "study.html").read_text()
        assert f"The best {measure} so far of each search by core-minutes spent" in read_page(html).charts
        assert f"study: {best}" in html

    def test_one_without_a_result_is_not_drawn(self, store: Store, tmp_path: Path) -> None:
        grid = open_store(str(tmp_path / "grid"))
        write_study(store, [trial(0, 0.95)])
        write_study(grid, None)
        write_report(store.root, str(tmp_path / "study.html"), compare=grid.root)
        assert "by core-minutes spent" not in "".join(read_page((tmp_path / "study.html").read_text()).charts)

    def test_other_films_cannot_be_compared(self, store: Store, tmp_path: Path) -> None:
        other = open_store(str(tmp_path / "other"))
        write_study(store, [trial(0, 0.95)])
        write_study(other, [trial(0, 0.95)])
        of = json.loads(other.get("study.json"))
        other.put("study.json", json.dumps({**of, "fingerprint": "of other films"}).encode())
        with pytest.raises(InputError, match="is a study of other films than"):
            write_report(store.root, str(tmp_path / "study.html"), compare=other.root)


def test_the_best_is_the_trial_that_the_search_promotes(store: Store, tmp_path: Path) -> None:
    """A search ranks by its objective, of equals by speed; by AUC another trial would be first."""
    rows = [
        trial(0, 0.99, objective=0.80, latency_ms=1.0),
        trial(1, 0.95, objective=0.90, latency_ms=3.0),
        trial(2, 0.96, objective=0.90, latency_ms=2.0),
    ]
    write_study(store, rows, objectives=["sensitivity@specificity=0.9", "latency"])
    promoted = best_trial(read_trials(store))
    assert promoted is not None
    assert promoted.number == 2
    text = report(store, tmp_path / "study.html").text
    assert "Best sensitivity@specificity=0.9 0.9000 trial 2, cnn, AUC 0.9600" in text
    assert "1 2 cnn 0.9000 0.9600" in text, "the first row of the leaderboard"
