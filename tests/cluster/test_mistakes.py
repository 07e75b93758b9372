"""A mistake is reported at once: one line, exit code 2, before Ray starts and before anything heavy is imported."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.cli import VERBS
from models.spec import Preprocessing
from models.statistics.calibration import Calibration
from pipelines.contracts import PART
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from tests.pace import pace, run
from tests.servers import free_port
from tests.tuning.films import write_dataset

QUICK = 1.0
"""CPU-seconds of the whole process on a quiet machine, byte code compiled."""
DUCKDB = 2.0
"""For a question in SQL: only the database can tell what is wrong with it."""
TORCH = 15.0
"""For an architecture: only timm, which needs torch, knows all of them. Four times what it takes alone."""


@dataclass(frozen=True)
class Mistake:
    """A command line with `{…}` for places of the fixture, and what must be said."""

    args: str
    says: str
    limit: float = QUICK

    @property
    def verb(self) -> str:
        return self.args.split()[0]


MISTAKES = [
    Mistake("demo --out {films}", "holds files the demo did not make; give --out another folder"),
    Mistake("demo --out s3://bucket/demo", "s3://bucket/demo: not a local folder"),
    Mistake("catalog {nowhere} --out {new}", "{nowhere}: no such folder"),
    Mistake("catalog {empty} --out {new}", "no scans here; check the path"),
    Mistake("catalog gopher://x --out {new}", "unknown scheme 'gopher'; use a local path, s3://"),
    Mistake("catalog {films} --out {new} --labels {nowhere}.csv", "there is no such file of labels; check the path"),
    Mistake("catalog {films} --out {new} --labels path --val-fraction 2", "give shares from 0 up to 1"),
    Mistake("catalog {films} --out {file}/catalog", "cannot make this folder: Not a directory: {file}; choose another"),
    Mistake("audit {nowhere}", "no catalogue here; make one with `rayscan catalog`"),
    Mistake("audit {catalog} --out {empty}", "a report is one file; name it, as in"),
    Mistake("prepare {nowhere} --out {new}", "no catalogue here; make one with `rayscan catalog`"),
    Mistake("prepare {unlabelled} --out {new}", "no labelled films; make the catalogue with --labels"),
    Mistake("prepare {catalog} --out {new} --size 3", "size 3 is out of range; choose 16 to 2048"),
    Mistake("prepare {catalog} --out {file}", "{file}: cannot make this folder: File exists; choose another"),
    Mistake("prepare {catalog} --out {new} --address 127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port}"),
    Mistake("train {nowhere} --out {new} --model cnn", "no data set here; make one with `rayscan prepare`"),
    Mistake("train {dataset} --out {new}", "say what to train: --recipe NAME"),
    Mistake("train {dataset} --out {new} --recipe mobilnet", "there is no recipe 'mobilnet'; did you mean 'mobilenet'"),
    Mistake("train {dataset} --out {new} --recipe {nowhere}.toml", "no such recipe file"),
    Mistake("train {dataset} --out {new} --recipe {broken}", "not a recipe: "),
    Mistake("train {dataset} --out {new} --recipe mobilenet", "name their file or URI with --weights"),
    Mistake("train {dataset} --out {new} --recipe mobilenet --weights {nowhere}", "no such file of weights"),
    Mistake("train {dataset} --out {new} --model cnn --size 64", "prepare it again with --size 64"),
    Mistake("train {dataset} --out {new} --model cnn --epochs 0", "epochs=0 is out of range; choose 1 or more"),
    Mistake("train {dataset} --out {file} --model cnn", "{file}: cannot make this folder"),
    Mistake("train {dataset} --out {new} --model resnet9000", "unknown model 'resnet9000'", TORCH),
    Mistake("crossvalidate {nowhere} --recipe cnn-best", "no data set here; make one with `rayscan prepare`"),
    Mistake("crossvalidate {dataset} --recipe cnn-best --folds 1", "1 folds are out of range; choose 2 to 50"),
    Mistake("crossvalidate {dataset} --recipe cnn-best --out {empty}", "a report is one file; name it, as in"),
    Mistake("recipes --config {nowhere}", "no such job file"),
    Mistake("tune {nowhere} --out {new}", "no data set here; make one with `rayscan prepare`"),
    Mistake("tune {dataset} --out {study}", "is not empty; add --resume to go on with that study, or give another"),
    Mistake("tune {dataset} --out {new} --resume", "study.json does not exist: there is no study there"),
    Mistake("tune {dataset} --out {study} --resume", "resume with the study's own dataset, or give another --out"),
    Mistake("tune {dataset} --out {file}", "{file}: cannot make this folder"),
    Mistake("tune {dataset} --out {new} --weights {nowhere}", "there is no such file of weights; check the path"),
    Mistake("tune {dataset} --out {new} --space gird", "there is no space 'gird'; did you mean 'grid'?"),
    Mistake("tune {dataset} --out {new} --space {broken}", "not a space: "),
    Mistake("tune {dataset} --out {new} --from {nowhere}", "study.json does not exist: there is no study there"),
    Mistake("tune {dataset} --out {new} --optuna-storage redis://x", "redis:// is no Optuna storage"),
    Mistake("tune {dataset} --out {new} --objective speed", "speed"),
    Mistake("tune {dataset} --out {new} --trials 0", "trials is 0; give at least 1"),
    Mistake("tune {dataset} --out {new} --time-budget soon", "'soon' is not a duration; write 90s, 30m, 1h30m or 7d"),
    Mistake("tune {dataset} --out {new} --cpus-per-trial 0", "cpus_per_trial is 0; give at least 1"),
    Mistake("tune {dataset} --out {new} --gpus-per-trial 1.5", "gpus_per_trial is 1.5; give a fraction of one GPU"),
    Mistake("tune {dataset} --out {new} --concurrent 0", "max_concurrent is 0; give at least 1"),
    Mistake("tune {dataset} --out {new} --address 127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port}"),
    Mistake("tune {dataset} --out {new} --family resnet9000", "unknown model 'resnet9000'", TORCH),
    Mistake("evaluate {nowhere} {dataset} --split val", "bundle.json is missing; {nowhere} is not a whole bundle"),
    Mistake("evaluate {bundle} {dataset} --split test", "no films in split 'test'; it has train, val"),
    Mistake("evaluate {bundle} {dataset} --split val --against {nowhere}", "{nowhere} is not a whole bundle"),
    Mistake("agree {nowhere} --dataset {dataset}", "{nowhere} is not a whole bundle"),
    Mistake("agree {bundle} --dataset {nowhere}", "no data set here; make one with `rayscan prepare`"),
    Mistake("agree {bundle} --dataset {dataset}", "was made from another data set, on whose validation films"),
    Mistake("score {nowhere} --model {bundle} --out {new}", "{nowhere}: no such folder"),
    Mistake("score {films} --model {nowhere} --out {new}", "bundle.json is missing; {nowhere} is not a whole bundle"),
    Mistake("score {films} --model {bundle} --out {new} --operating-point best", "no operating point 'best'; choose"),
    Mistake("score {films} --model {bundle} --out {new} --metrics-file night.txt", "name a local file *.prom"),
    Mistake(
        "score {films} --model {bundle} --out {new} --metrics-file {nowhere}/n.prom", "no folder that this user may"
    ),
    Mistake("score {films} --model {bundle} --out {new} --metrics-push host:9091", "write it as http://host:9091"),
    Mistake(
        "score {films} --model {bundle} --out {new} --metrics-push http://me:secret@host", "the URL holds a password"
    ),
    Mistake("score {films} --model {bundle} --out {new} --shard-size 0", "shard size 0 is out of range; choose 1 to"),
    Mistake("score {films} --model {bundle} --out {new} --wait soon", "'soon' is not a duration; write 90s"),
    Mistake("score {films} --model {bundle} --out {new} --notify nobody", "--notify"),
    Mistake("score {films} --model {bundle} --out {file}", "{file}: cannot make this folder"),
    Mistake("score {films} --model {bundle} --out {new} --address 127.0.0.1:{port}", "no Ray cluster answers at"),
    Mistake("compact {nowhere}", "{nowhere}: no such folder"),
    Mistake("compact {empty}", "no scores here; check the path"),
    Mistake("compact {scores} --model 77", "no model '77' has scored here; there are 12ab"),
    Mistake("erase {scores} --yes", "say whom to erase: --patients FILE or --uris FILE"),
    Mistake("erase {scores} --uris {file}", "there is no terminal to ask on; add --yes"),
    Mistake("erase {scores} --uris {nowhere} --yes", "there is no such file of URIs; check the path"),
    Mistake("erase {scores} --patients {file} --yes", "1 of the patients are no patient keys; to find them by"),
    Mistake("erase {nowhere} --uris {file} --yes", "{nowhere}: no such folder"),
    Mistake("prune {scores}", "Missing option '--keep'"),
    Mistake("prune {scores} --keep soon", "'soon' is not a duration; write 90s, 30m, 1h30m or 7d", DUCKDB),
    Mistake("prune {scores} --keep 90", "runs are kept for a day (1d) to a hundred years (36500d), not for 90", DUCKDB),
    Mistake("prune {nowhere} --keep 90d", "{nowhere}: no such folder", DUCKDB),
    Mistake("prune {empty} --keep 90d", "no run was recorded here; score into it first", DUCKDB),
    Mistake("explain {nowhere}", "{nowhere}: no such folder"),
    Mistake("explain {empty}", "no run was recorded here; score into it first, or check the path"),
    Mistake("explain {scores} rum", "there is no run 'rum' here; did you mean 'run'?", DUCKDB),
    Mistake("query {nowhere}", "{nowhere}: no such folder"),
    Mistake("query {empty}", "no run was recorded here; score into it first, or check the path"),
    Mistake("query {scores} SELEKT", "the question cannot be answered: ", DUCKDB),
    Mistake("query {scores} ATTACH'x'", "a question is one SELECT, and this is ATTACH; to save", DUCKDB),
    Mistake("query {scores} --out {scores}/a.csv", "lies within the scores; write the answer elsewhere", DUCKDB),
    Mistake("query {scores} --out {new}", "end it in .csv, .json or .parquet, or add --format", DUCKDB),
    Mistake(
        "query {scores} --out {file}/a.csv", "{file}: cannot make this folder: File exists; choose another", DUCKDB
    ),
    Mistake("query {scores} --as-of yesterday", "'yesterday' is no version: write its number, a day", DUCKDB),
    Mistake("history {nowhere}", "{nowhere}: no such folder"),
    Mistake("history {empty}", "no run was recorded here; score into it first, or check the path"),
    Mistake("query {scores} --memory much", "'much' is not a size; write 2GiB or 512MiB", DUCKDB),
    Mistake("query {scores} --format xml", "Invalid value for '--format'"),
    Mistake("score {films} --model production --out {scores}", "no model is production here; name one with: rayscan"),
    Mistake("models {nowhere}", "{nowhere}: no such folder"),
    Mistake("models {empty}", "no run was recorded here, and no model promoted; check the path"),
    Mistake("promote {scores} {nowhere} --as production", "bundle.json is missing; {nowhere} is not a whole bundle"),
    Mistake("promote {scores} {bundle} --as best", "Invalid value for '--as'"),
    Mistake("promote {file} {bundle} --as shadow", "{file}: cannot make this folder: File exists; choose another"),
    Mistake("rollback {scores}", "nothing to roll back to: no model is in production here"),
    Mistake("rollback {nowhere}", "nothing to roll back to: no model is in production here"),
    Mistake("report {nowhere} --out {new}.html", "nothing to report on; looked for study.json"),
    Mistake("report {study} --out {empty}", "a report is one file; name it, as in"),
    Mistake("report {study} --out {new}.html --thumbnails 3", "is a study; thumbnails can be had of scores only"),
    Mistake("report {study} --out {new}.html --compare {nowhere}", "study.json does not exist"),
    Mistake("report {bundle} --out {new}.html --compare a,b", "to compare models use rayscan evaluate --against"),
    Mistake("submit", "Missing argument"),
    Mistake("submit -- scor {films}", "there is no verb 'scor' to submit; did you mean 'score'?"),
    Mistake("submit -- score s3://b/films --notify json://x", "set RAYSCAN_NOTIFY in the nodes' environment instead"),
    Mistake("submit -- score s3://b/f --metrics-file n.prom --model s3://b/m --out s3://b/s", "give an absolute path"),
    Mistake("submit --address http://127.0.0.1:{port} -- query s3://b/s", "no Ray cluster answers at http://127.0.0.1"),
    Mistake("jobs --address http://127.0.0.1:{port}", "start one with `ray start --head`"),
    Mistake("logs some-job --address http://127.0.0.1:{port}", "start one with `ray start --head`"),
    Mistake("wait some-job --address http://127.0.0.1:{port}", "start one with `ray start --head`"),
    Mistake("stop some-job --address http://127.0.0.1:{port}", "start one with `ray start --head`"),
    Mistake("doctor gopher://x", "unknown scheme 'gopher'; use a local path, s3://"),
    Mistake("doctor --address 127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port}"),
    Mistake("dashboard --address 10.0.0.1:6379", "is no address of a dashboard: give one like http://"),
]


def test_every_verb_has_its_mistakes() -> None:
    assert {mistake.verb for mistake in MISTAKES} == {verb.__name__ for verb in VERBS}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One of each input a verb may be given."""
    folder = tmp_path_factory.mktemp("places")
    places = {
        name: str(folder / name)
        for name in (
            "films",
            "empty",
            "catalog",
            "unlabelled",
            "dataset",
            "bundle",
            "study",
            "scores",
            "nowhere",
            "new",
        )
    }
    for label in ("NORMAL", "PNEUMONIA"):
        for number in range(3):
            film = folder / "films" / "train" / label / f"{label}-{number}.png"
            film.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 40 * number).save(film)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    (folder / "broken.toml").write_text("[half")
    build_catalog(places["films"], places["catalog"], CatalogSettings(labels="path"))
    build_catalog(places["films"], places["unlabelled"], CatalogSettings())
    write_dataset(places["dataset"], films=14)
    _write_bundle(folder / "bundle")
    (folder / "study").mkdir()
    study = {"dataset": "file:///other", "fingerprint": "other", "space": {}, "settings": {"epochs": 8}}
    (folder / "study" / "study.json").write_text(json.dumps(study))
    part = folder / "scores" / "scores" / "model_id=12ab" / "date=2026-11-20"
    part.mkdir(parents=True)
    pq.write_table(PART.empty_table(), part / "run-00000.parquet")
    run = folder / "scores" / "runs" / "run"
    run.mkdir(parents=True)
    (run / "plan.json").write_text(json.dumps({"run_id": "run", "model_id": "12ab"}))
    return {**places, "file": str(folder / "file"), "broken": str(folder / "broken.toml"), "port": str(free_port())}


def _write_bundle(folder: Path) -> None:
    from models.bundle import save_bundle
    from models.networks.zoo import build
    from models.spec import ModelSpec
    from pipelines.pages.card import render_card

    spec = ModelSpec(name="mlp", preprocessing=Preprocessing(size=32))
    save_bundle(
        folder,
        render_card=render_card,
        spec=spec,
        state_dict=build(spec).state_dict(),
        calibration=Calibration(temperature=1.0, operating_points={"balanced": 0.5}),
        evaluation={},
        lineage={},
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.args)
def test_a_mistake_is_told_at_once(rayscan_command: str, places: dict[str, str], mistake: Mistake) -> None:
    args = [rayscan_command, *(word.format(**places) for word in mistake.args.split())]
    done, spent = run(args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Ray at" not in done.stderr, "Ray was started"
    lines = [line for line in done.stderr.splitlines() if line.startswith("rayscan: ")]
    usage = done.stderr.startswith("Usage: ")
    assert len(lines) == (0 if usage else 1), done.stderr
    said = lines[0] if lines else " ".join(done.stderr.translate(str.maketrans("│╭╮╰╯─", "      ")).split())
    assert mistake.says.format(**places) in said
    assert not list(Path(places["new"]).parent.glob("new*")), "something was written"
    if spent > mistake.limit:  # the first run may write byte code, and the machine may be slow or busy
        spent = min(spent, run(args)[1]) / pace()
    assert spent <= mistake.limit
