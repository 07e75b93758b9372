"""Paths on the command line: said once, they mean the same on every worker."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer

from cluster.locations import (
    labels_location,
    location,
    mirror_location,
    named_or_file,
    study_or_models,
    weights_location,
)
from models.spec import ModelSpec, Preprocessing
from models.zoo import build
from pipelines.storage import open_store
from tests.servers import clean_environment
from tests.tuning.films import SIZE, write_dataset
from tuning.search import _read_films
from tuning.study import read_study, read_trials

BACKBONE = "mobilenetv3_small_050"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("films", "HERE/films"),
        ("./films/x.dcm", "HERE/films/x.dcm"),
        ("../films", "HERE/../films"),  # as it is: `..` behind a link is not the folder above its name
        ("reports/", "HERE/reports/"),
        ("/films", "/films"),
        ("/", "/"),
        ("~/films", "HOME/films"),
        ("file://films", "file://HERE/films"),
        ("file:///films", "file:///films"),
        ("s3://bucket/films/", "s3://bucket/films/"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("gopher://x", "gopher://x"),  # refused by who opens it
        ("imagenet", "HERE/imagenet"),
    ],
)
def test_a_local_path_becomes_absolute_and_a_uri_stays(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert location(text) == place.replace("HERE", str(tmp_path)).replace("HOME", "/home/of/somebody")


@pytest.mark.parametrize(
    ("parser", "kept", "moved"),
    [
        (weights_location, ["imagenet", "s3://b/w.pth"], ["w.safetensors", "path"]),
        (labels_location, ["path"], ["labels.csv", "imagenet"]),
        (named_or_file, ["mobilenet", "cnn-grid", "no/such"], ["r.toml", "mine/s.toml"]),
        (mirror_location, ["postgresql://u:p@h/d", "sqlite:///x.db", ""], ["trials.log"]),
        (study_or_models, ["1f,2e", "s3://b/study"], ["study", "a,b/study"]),
    ],
)
def test_words_that_are_no_paths_stay(
    parser: Any, kept: list[str], moved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [parser(text) for text in kept] == kept
    assert [parser(text) for text in moved] == [f"{tmp_path}/{text}" for text in moved]


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_path_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="it is empty"):
        location(text)


def test_a_search_hands_its_workers_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset("dataset", films=14)
    assert _read_films("dataset").uri == f"file://{tmp_path}/dataset"


def rayscan(command: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command, *args], capture_output=True, text=True, env=clean_environment(), cwd=folder, check=False
    )


def test_trials_find_films_and_weights_that_were_named_by_relative_paths(rayscan_command: str, tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "dataset"), films=70)
    torch.manual_seed(0)
    network = build(ModelSpec(name=BACKBONE, preprocessing=Preprocessing(size=SIZE)))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "space.toml").write_text(f'family = "{BACKBONE}"\n[pretrained]\nhead_first = true\n')
    (tmp_path / "job.toml").write_text('[tune]\nout = "study"\nspace = "space.toml"\nepochs = 1\ntrials = 3\n')
    done = rayscan(
        rayscan_command, "tune", "dataset", "--weights", "weights.safetensors", "--config", "job.toml", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    store = open_store(str(tmp_path / "study"))
    assert read_study(store).dataset == f"file://{tmp_path}/dataset"
    trials = read_trials(store)
    assert [trial.error for trial in trials] == [None, None, None]
    assert trials[2].parameters["pretrained_head_first"] is True
    assert str(tmp_path / "weights.safetensors") in trials[2].parameters.values()
