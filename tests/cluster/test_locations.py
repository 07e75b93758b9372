"""Paths on the command line mean the same on every worker."""

from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.locations import (
    labels_location,
    location,
    mirror_location,
    named_or_file,
    study_or_models,
    weights_location,
)
from tests.tuning.films import write_dataset
from tuning.search.setup import read_films


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
        (mirror_location, ["postgresql://u@h/d", "sqlite:///x.db", ""], ["trials.log"]),
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
    assert read_films("dataset").uri == f"file://{tmp_path}/dataset"


@pytest.mark.parametrize(
    "url",
    ["postgresql://bob:s3cr3t@h/d", "mysql://h/d?user=bob&password=s3cr3t", "postgresql+psycopg://:s3cr3t@h/d",
     "mysql://h/d?PASSWD=s3cr3t", "postgresql://bob:s3/cr3t@h/d", "postgresql://bob:s3?cr3t#x@h/d"],
)  # fmt: skip
def test_a_password_on_the_command_line_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(typer.BadParameter, match="holds a password") as refused:
        mirror_location(url)
    assert "cr3t" not in str(refused.value)
