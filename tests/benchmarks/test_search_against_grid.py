"""A full grid, one configuration after the other, against the search with the same cores, by core-minutes.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
READ_AT = (1, 2, 5, 10, 20, 30, 60)
"""Minutes."""
MEASURES = ("log_score", "auc")
PRETRAINED, SEARCH, GRID = "tune, MobileNetV2 0.35 and CNN", "tune, CNN", "grid of 24 CNNs, {} px"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial when it ended."""

    minutes: float
    """Core-minutes spent until then."""
    log_score: float
    """What both searches look for: of validation films and perturbed copies."""
    auc: float


def ended(study: str, cores: int, *, baselines: bool) -> list[Ended]:
    """A study's trials that have a result, in the order in which they ended."""
    trials = [
        trial
        for trial in read_trials(open_store(study))
        if trial.kind != "probe" and (baselines or trial.kind != "baseline")
    ]
    began = min(trial.started_at for trial in trials)
    found = [
        Ended(
            minutes=cores * (trial.finished_at - began).total_seconds() / 60, log_score=trial.objective, auc=trial.auc
        )
        for trial in trials
        if trial.auc is not None and trial.objective is not None
    ]
    return sorted(found, key=lambda trial: trial.minutes)


def cost_of(trials: Sequence[Ended], measure: str, value: float) -> float | None:
    """Core-minutes until the best so far reached this value; None if it never did."""
    return next((trial.minutes for trial in trials if getattr(trial, measure) >= value), None)


def table(grids: Mapping[str, Sequence[Ended]], searches: Mapping[str, Sequence[Ended]], cores: int) -> str:
    """What each grid came to, and what the searches needed for the same; then what the searches came to."""
    lines = ["| grid | core-minutes | best log score | best AUC |", "|---|---|---|---|"]
    lines += [f"| {name} | {grid[-1].minutes:.1f} | {_best(grid)} |" for name, grid in grids.items()]
    lines += ["", "| search | had the best of | log score after | AUC after |", "|---|---|---|---|"]
    for name, search in searches.items():
        for grid_name, grid in grids.items():
            told = []
            for measure in MEASURES:
                reached = cost_of(search, measure, max(getattr(trial, measure) for trial in grid))
                told.append(f"{reached:.1f} core-minutes, 1/{grid[-1].minutes / reached:.1f}" if reached else "never")
            lines.append(f"| {name} | {grid_name} | {' | '.join(told)} |")
    lines += ["", "| search | minutes | trials ended | best log score | best AUC |", "|---|---|---|---|---|"]
    for name, search in searches.items():
        for minutes in [at for at in READ_AT if at * cores <= search[-1].minutes + cores]:
            until = [trial for trial in search if trial.minutes <= minutes * cores]
            lines.append(f"| {name} | {minutes} | {len(until)} | {_best(until)} |")
    return "\n".join(lines)


def _best(trials: Sequence[Ended]) -> str:
    return " | ".join(f"{max(getattr(trial, measure) for trial in trials):.4f}" for measure in MEASURES)


def report(grids: Mapping[str, str], searches: Mapping[str, str], cores: int) -> tuple[str, str]:
    """The table, and the picture as SVG, of studies by their URIs."""
    of_grids = {name: ended(uri, cores, baselines=False) for name, uri in grids.items()}
    of_searches = {name: ended(uri, cores, baselines=True) for name, uri in searches.items()}
    curves = {
        name: [(trial.minutes, trial.log_score) for trial in trials]
        for name, trials in {**of_searches, **of_grids}.items()
    }
    return table(of_grids, of_searches, cores), svg_file(paint_beside(curves, "log score"), height=3.6)


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
    best = max(trial.log_score for uri in grids.values() for trial in ended(uri, cores, baselines=False))
    for uri in searches.values():
        assert max(trial.log_score for trial in ended(uri, cores, baselines=True)) > best
