"""Every verb as a person at a terminal meets it: it ends well, and what it leaves on the screen can be read.

The verbs of the README's tour are walked at 80 columns in tests/integration/test_readme_tour.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import safetensors.torch

from cluster.cli import VERBS
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.cluster.ray_head import Head
from tests.nights import make_night
from tests.pipelines.bundles import save_untrained
from tests.servers import clean_environment
from tests.terminal import Shown, on_terminal
from tests.tuning.films import write_dataset
from tuning.study.store import read_study, read_trials

SMALL, LARGE = (80, 24), (140, 50)
NATIVE = re.compile(r"\w+\.cc:\d+")
"""How the lines of Ray's C++ code are told."""
BACKBONE = "mobilenetv2_035"

AT_ONCE: Mapping[str, Sequence[str]] = {
    "catalog": ("films", "--labels", "path", "--inspect", "--out", "another"),
    "audit": ("catalog", "--out", "audit.html"),
    "train": ("dataset", "--model", "mlp", "--epochs", "2", "--out", "trained", "--no-films"),
    "crossvalidate": ("dataset", "--model", "mlp", "--epochs", "1", "--folds", "2", "--out", "cv.html"),
    "recipes": (),
    "evaluate": ("bundle", "dataset", "--split", "val"),
    "agree": ("own", "--dataset", "dataset"),
    "query": ("scores",),
    "report": ("scores", "--out", "night.html"),
    "history": ("scores",),
    "compact": ("scores",),
    "explain": ("scores",),
    "prune": ("scores", "--keep", "90d"),
    "dashboard": (),
}
"""Verbs that start no Ray, with what a person would give them."""
IN_TURN: Sequence[Sequence[str]] = (
    ("promote", "scores", "bundle", "--as", "production", "--reason", "the first"),
    ("promote", "scores", "own", "--as", "production", "--reason", "trained on our films"),
    ("rollback", "scores", "--reason", "over-calls"),
    ("models", "scores"),
    ("erase", "scores", "--uris", "erase.txt", "--yes"),
)
"""Verbs that need what the one before left."""
SCORE = ("archive", "--model", "bundle", "--out", "scores", "--shard-size", "10", "--no-report")
ON_A_CLUSTER = ("submit", "jobs", "logs", "wait", "stop", "doctor")
WITH_RAY = ("prepare", "score", "tune", "demo")


def test_every_verb_is_walked() -> None:
    assert sorted({*AT_ONCE, *ON_A_CLUSTER, *WITH_RAY, *(verb for verb, *_ in IN_TURN)}) == sorted(
        verb.__name__ for verb in VERBS
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, rayscan_command: str) -> Path:
    """A folder with films, a catalogue, a data set, weights, a bundle, an archive to score and scores."""
    folder = tmp_path_factory.mktemp("place")
    write_archive(open_store(str(folder / "films")), patients=20, seed=3, size=64)
    build_catalog(str(folder / "films"), str(folder / "catalog"), CatalogSettings(labels="path"))
    write_dataset(str(folder / "dataset"))
    network = build(ModelSpec(name=BACKBONE, preprocessing=Preprocessing(size=32)))
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    save_untrained(folder / "own", lineage={"dataset_fingerprint": "blobs"})  # which `write_dataset` gives its data set
    make_night(rayscan_command, folder, films=40, side=64)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment() | {"TERM": "xterm-256color", "RAYSCAN_CACHE": str(tmp_path / "cache")}


def assert_reads_well(shown: Shown, columns: int, *, exit_code: int = 0) -> None:
    """It ended as it should; nothing on the screen is torn, cut or meant for a machine."""
    assert shown.exit_code == exit_code, shown.text
    assert "Traceback" not in shown.text
    assert not NATIVE.search(shown.sent), shown.text
    assert max(len(line) for line in shown.lines) <= columns
    for line in shown.lines:  # a bar has its line to itself
        assert "━" not in line or re.search(r"\d+/\d+ \w+ +\d+:\d\d:\d\d", line), shown.text
    # The cursor is shown again, and a prompt would stand on a line of its own; colorama, which Ray brings, resets the
    # colour last.
    assert shown.sent.rfind("\x1b[?25h") >= shown.sent.rfind("\x1b[?25l")
    assert re.sub(r"(\x1b\[0m)*$", "", shown.sent).endswith("\n")
    assert shown.last_line.strip()


@pytest.fixture(scope="module")
def scored(place: Path, rayscan_command: str) -> Shown:
    """The night, scored; what its terminal showed."""
    return on_terminal(
        [rayscan_command, "score", *SCORE],
        env=clean_environment() | {"TERM": "xterm-256color"},
        cwd=place,
        size=LARGE,
    )


def test_score_moves_scan_by_scan(scored: Shown) -> None:
    assert_reads_well(scored, LARGE[0])
    assert "40/40 scans" in scored.text
    assert "Ray's own log goes to" in scored.text


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("verb", AT_ONCE)
def test_verbs_without_ray(rayscan_command: str, environment: Mapping[str, str], place: Path, verb: str) -> None:
    shown = on_terminal([rayscan_command, verb, *AT_ONCE[verb]], env=environment, cwd=place, size=LARGE)
    assert_reads_well(shown, LARGE[0])


@pytest.mark.usefixtures("scored")
def test_a_model_comes_and_goes_and_a_film_is_erased(
    rayscan_command: str, environment: Mapping[str, str], place: Path
) -> None:
    (place / "erase.txt").write_text(f"{open_store(str(place / 'archive')).root}/7.jpeg\n")
    screens = []
    for verb in IN_TURN:
        shown = on_terminal([rayscan_command, *verb], env=environment, cwd=place, size=LARGE)
        assert_reads_well(shown, LARGE[0])
        screens.append(shown.text)
    *_, models, erased = screens
    assert "over-calls" in models
    assert re.search(r"films +1\n", erased)


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("verb", ["score", "query"])
def test_a_terminal_that_cannot_be_drawn_over(
    rayscan_command: str, environment: Mapping[str, str], place: Path, verb: str
) -> None:
    args = SCORE if verb == "score" else AT_ONCE[verb]
    shown = on_terminal([rayscan_command, verb, *args], env={**environment, "TERM": "dumb"}, cwd=place)
    assert_reads_well(shown, SMALL[0])
    assert "\x1b" not in shown.sent.removesuffix("\x1b[0m")


@pytest.mark.parametrize("verb", ["prepare", "query"])
@pytest.mark.usefixtures("scored")
def test_without_colours(rayscan_command: str, environment: Mapping[str, str], place: Path, verb: str) -> None:
    args = ("catalog", "--size", "32", "--out", "decoded") if verb == "prepare" else AT_ONCE[verb]
    shown = on_terminal([rayscan_command, verb, *args], env={**environment, "NO_COLOR": "1"}, cwd=place, size=LARGE)
    assert_reads_well(shown, LARGE[0])
    assert not re.search(r"\x1b\[[\d;]*3\dm", shown.sent)


@pytest.mark.chaos  # `test_demo.py` looks at a search on a terminal, the README's tour at its paths
def test_a_whole_search_whose_paths_are_relative(
    rayscan_command: str, environment: Mapping[str, str], place: Path
) -> None:
    (place / "space.toml").write_text(f'family = "{BACKBONE}"\n[pretrained]\nhead_first = true\n')
    (place / "job.toml").write_text('[tune]\nout = "study"\nspace = "space.toml"\nepochs = 1\ntrials = 3\n')
    what = ("--weights", "weights.safetensors", "--probes", "2", "--finals", "1", "--confirm", "1")
    shown = on_terminal(
        [rayscan_command, "tune", "dataset", "--config", "job.toml", *what], env=environment, cwd=place, size=LARGE
    )
    assert_reads_well(shown, LARGE[0])
    assert "2/2 heads" in shown.text
    assert "on patients held out" in shown.text
    assert "trials under way" in shown.sent or "ended yet" in shown.sent, "the board was drawn"
    study = open_store(str(place / "study"))
    assert read_study(study).dataset == f"file://{place}/dataset"
    trials = [trial for trial in read_trials(study) if trial.model == BACKBONE and trial.kind != "probe"]
    assert trials
    for trial in trials:  # its workers stand in another folder
        assert trial.error is None
        assert trial.parameters["pretrained_head_first"] is True
        assert str(place / "weights.safetensors") in trial.parameters.values()


@pytest.mark.chaos  # `tests/tuning/search/test_driver.py` interrupts and resumes one
def test_ctrl_c_ends_a_search_with_the_best_so_far_and_it_can_be_resumed(
    rayscan_command: str, environment: Mapping[str, str], place: Path
) -> None:
    long = ("--family", "cnn", "--epochs", "60", "--no-pruning")
    search = [rayscan_command, "tune", "dataset", "--out", "stopped", *long]
    shown = on_terminal(
        [*search, "--trials", "8"],
        env=environment,
        cwd=place,
        interrupt_when=lambda sent: "trial 0 baseline majority complete" in sent,
    )
    assert_reads_well(shown, SMALL[0])
    assert "bundle" in shown.text
    resumed = on_terminal([*search, "--trials", "2", "--resume"], env=environment, cwd=place)
    assert_reads_well(resumed, SMALL[0])


def test_ctrl_c_ends_a_night_that_can_be_resumed(
    rayscan_command: str, environment: Mapping[str, str], place: Path
) -> None:
    night = [rayscan_command, "score", "archive", "--model", "bundle", "--out", "interrupted", "--shard-size", "1"]
    shown = on_terminal(
        night, env=environment, cwd=place, interrupt_when=lambda sent: bool(re.search(r"\b[1-9]\d?/40", sent))
    )
    assert_reads_well(shown, SMALL[0], exit_code=130)
    assert "interrupted; run the same command again" in shown.text


@pytest.mark.parametrize("verb", ON_A_CLUSTER)
def test_verbs_of_a_cluster(rayscan_command: str, head: Head, verb: str) -> None:
    environment = head.environment() | {"TERM": "xterm-256color", "RAY_ADDRESS": head.dashboard}
    job = "rayscan-doctor-none"
    submission = ("submit", "--", "recipes")
    args: Mapping[str, Sequence[str]] = {
        "submit": submission,
        "jobs": ("jobs",),
        "logs": ("logs", job),
        "wait": ("wait", job),
        "stop": ("stop", job),
        "doctor": ("doctor", "--address", head.address),
    }
    shown = on_terminal([rayscan_command, *args[verb]], env=environment, size=LARGE)
    assert_reads_well(shown, LARGE[0], exit_code=2 if verb in {"logs", "wait", "stop"} else 0)
