"""A full grid, one configuration after the other, against the search with the same cores: AUC by core-minutes.

The grid is the 24 CNN configurations of the recipe `cnn-grid` on films of 224 pixels, the size earlier projects used,
each trained to its last epoch with all cores. RAYSCAN_BENCH_GRIDS=224,96 adds one of 96, the recipe's own. The search
is `rayscan tune` as it comes, with nothing but a time budget: RAYSCAN_BENCH_MINUTES, 20 where it is not set. A second
one may start from pretrained weights. Takes as long as these and 20 to 45 minutes for the grid; needs RAYSCAN_REAL_DATA
and RAYSCAN_REAL_WEIGHTS.

Cost is wall time since the first trial began, times the cores of the machine, whether they had work or not. The grid's
two baselines do not count.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.pages.charts import svg_file
from pipelines.storage import open_store
from tests.benchmarks.measured import RECORD, RESULTS, record
from tests.benchmarks.processes import watch
from tuning.study.pages.search_charts import paint_beside
from tuning.study.store import read_trials

REAL, WEIGHTS = os.environ.get("RAYSCAN_REAL_DATA"), os.environ.get("RAYSCAN_REAL_WEIGHTS")
MINUTES = float(os.environ.get("RAYSCAN_BENCH_MINUTES", "20"))
SIDES = [int(side) for side in os.environ.get("RAYSCAN_BENCH_GRIDS", "224").split(",")]
"""All are read when imported: the tests' environment is cleaned of rayscan's variables."""
FILE = "mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
READ_AT = (1, 2, 5, 15, 30, 60)
"""Minutes."""
PRETRAINED, SEARCH, GRID = "tune, MobileNetV2 0.35 and CNN", "tune, CNN", "grid of 24 CNNs, {} px"

Curve = list[tuple[float, float]]
"""Ended trials as (core-minutes spent, AUC)."""


def curve(study: str, cores: int, *, baselines: bool) -> Curve:
    """A study's trials that have an AUC, in the order in which they ended."""
    trials = [
        trial
        for trial in read_trials(open_store(study))
        if trial.kind != "probe" and (baselines or trial.kind != "baseline")
    ]
    began = min(trial.started_at for trial in trials)
    spent = [(cores * (trial.finished_at - began).total_seconds() / 60, trial.auc) for trial in trials]
    return sorted((minutes, auc) for minutes, auc in spent if auc is not None)


def cost_of(trials: Curve, auc: float) -> float | None:
    """Core-minutes until the best so far reached this AUC; None if it never did."""
    return next((minutes for minutes, reached in trials if reached >= auc), None)


def best_until(trials: Curve, minutes: float) -> float | None:
    """The best AUC within this many core-minutes."""
    return max((auc for at, auc in trials if at <= minutes), default=None)


def table(grids: Mapping[str, Curve], searches: Mapping[str, Curve], cores: int) -> str:
    """What each grid came to, and what the searches needed for the same; then what the searches came to."""
    lines = ["| grid | core-minutes | best AUC |", "|---|---|---|"]
    lines += [f"| {name} | {grid[-1][0]:.1f} | {max(auc for _, auc in grid):.4f} |" for name, grid in grids.items()]
    lines += ["", "| search | had the best of | after core-minutes | share of that grid's cost |", "|---|---|---|---|"]
    for name, search in searches.items():
        for grid_name, grid in grids.items():
            reached = cost_of(search, max(auc for _, auc in grid))
            cost = f"{reached:.1f} | 1/{grid[-1][0] / reached:.1f}" if reached else "never | "
            lines.append(f"| {name} | {grid_name} | {cost} |")
    lines += ["", "| search | minutes | trials ended | best AUC |", "|---|---|---|---|"]
    for name, search in searches.items():
        for minutes in [at for at in READ_AT if at * cores <= search[-1][0] + 2 * cores]:
            ended = sum(at <= minutes * cores for at, _ in search)
            lines.append(f"| {name} | {minutes} | {ended} | {best_until(search, minutes * cores):.4f} |")
    return "\n".join(lines)


def report(grids: Mapping[str, str], searches: Mapping[str, str], cores: int) -> tuple[str, str]:
    """The table, and the picture as SVG, of studies by their URIs."""
    of_grids = {name: curve(uri, cores, baselines=False) for name, uri in grids.items()}
    of_searches = {name: curve(uri, cores, baselines=True) for name, uri in searches.items()}
    return table(of_grids, of_searches, cores), svg_file(paint_beside({**of_searches, **of_grids}), height=3.6)


@pytest.mark.bench
@pytest.mark.skipif(
    not (REAL and WEIGHTS), reason="RAYSCAN_REAL_DATA and RAYSCAN_REAL_WEIGHTS name no films and weights"
)
def test_the_search_beats_the_grid(rayscan_command: str, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1

    def run(*arguments: str) -> None:
        environment = {
            **os.environ,
            "RAYSCAN_PATIENT_SECRET": "the same in every bench",
            "RAYSCAN_CACHE": str(tmp_path / "cache"),
        }
        watch([rayscan_command, *arguments], environment)

    def tune(name: str, *options: str) -> str:
        run("tune", dataset, "--out", str(tmp_path / name), *options)
        return str(tmp_path / name)

    catalog, dataset = str(tmp_path / "catalog"), str(tmp_path / "dataset")
    run("catalog", f"{REAL}/kermany_224", "--labels", "path", "--out", catalog)
    run("prepare", catalog, "--out", dataset, "--size", "224")
    grid = ["--space", "cnn-grid", "--search", "grid", "--epochs", "6", "--no-pruning"]
    grid += ["--concurrent", "1", "--cpus-per-trial", str(cores)]
    grids = {GRID.format(side): tune(f"grid-{side}", *grid, "--resolution", str(side)) for side in SIDES}
    pretrained = ["--family", "mobilenetv2_035", "--family", "cnn", "--weights", f"{WEIGHTS}/{FILE}"]
    budget = ["--time-budget", f"{60 * MINUTES:.0f}s"]
    searches = {PRETRAINED: tune("pretrained", *pretrained, *budget), SEARCH: tune("search", *budget)}
    text, svg = report(grids, searches, cores)
    sys.stdout.write(f"\n{text}\n")
    record("search-against-grid", text)
    if RECORD:
        (RESULTS / "search-against-grid.svg").write_text(svg)
    best = max(auc for uri in grids.values() for _, auc in curve(uri, cores, baselines=False))
    for uri in searches.values():
        assert max(auc for _, auc in curve(uri, cores, baselines=True)) > best
