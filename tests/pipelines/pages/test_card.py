"""The card shows what the bundle holds: these figures, these films, and what nobody told rayscan."""

import base64
import copy
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.explain import SALIENCY_METHODS
from models.films import Films
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec
from models.statistics.calibration import Calibration
from models.statistics.evaluation import evaluation_entry
from models.statistics.fingerprint import fingerprint
from models.statistics.robustness import robustness, score_copies
from pipelines.pages.card import Since, render_card
from pipelines.pages.claim import METHOD_NAMES, claim
from pipelines.pages.frame import interval
from pipelines.pages.samples import SIDE, SURE, samples
from tests.models.synthetic import blob_films, counts_bright, small_spec
from tests.pipelines.pages.samples import Page, read_page

CLASSES = ("NORMAL", "PNEUMONIA")
CALIBRATION = Calibration(temperature=1.5, operating_points={"rule_out": 0.2, "balanced": 0.45, "rule_in": 0.7})
FILMS = blob_films(80)
LINEAGE = {
    "dataset_fingerprint": "9f3c",
    "counts": {
        "train": {"films": 4684, "patients": 2490, "classes": {"NORMAL": 1208, "PNEUMONIA": 3476}},
        "val": {"films": 80, "patients": 80, "classes": {"NORMAL": 40, "PNEUMONIA": 40}},
    },
    "versions": {"torch": "2.15"},
    "created": "2026-01-01T00:00:00+00:00",
    "recipe": {"model": "cnn", "weights": "s3://weights/start.safetensors"},
    "training": {"epochs": 2, "augment": 0.5},
    "history": [
        {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "val_auc": 0.8 + epoch / 100}
        for epoch in (1, 2)
    ],
    "best_epoch": 2,
    "seed": 5,
}


def probabilities() -> np.ndarray:
    """Right but for every ninth film, each film another one."""
    rng = np.random.default_rng(2)
    right = np.where(np.arange(80) % 9 < 8, FILMS.labels, 1 - FILMS.labels)
    return (0.1 + 0.6 * right + 0.2 * rng.random(80)).astype(np.float32)


def full_entry() -> dict[str, Any]:
    probability = probabilities()
    sites = np.where(np.arange(80) < 50, "north", "south")
    entry = evaluation_entry(
        split="val",
        labels=FILMS.labels,
        probability=probability,
        subtypes=FILMS.subtypes,
        calibration=CALIBRATION,
        groups={"site": sites},
    )
    found = robustness(
        score_copies(lambda pixels: probability + pixels[:, 0, 0] / 1e5, FILMS.pixels, FILMS.labels), 0.45
    )
    return {**entry, "robustness": found.to_json()}


def card(evaluation: dict[str, Any], since: Since | None = None, spec: ModelSpec | None = None, **lineage: Any) -> Page:
    told = {**LINEAGE, **lineage}
    return read_page(render_card(spec or small_spec(), CALIBRATION, evaluation, told, weights="ab" * 32, since=since))


def test_the_figures_are_those_of_the_entry() -> None:
    entry = full_entry()
    page = card({"val": entry})
    metrics = entry["metrics"]
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        assert interval(metrics[name]) in page.text
    for name in ("average_precision", "mcc", "f1", "log_loss"):
        assert interval(entry["over_patients"][name]) in page.text
    for row in entry["predictive_values"]:
        told = f"{100 * row['prevalence']:g} % {interval(row['ppv'])} {interval(row['npv'])}"
        assert told in page.text
    for name, at in entry["operating_points"].items():
        default = " (default)" if name == "balanced" else ""
        shares = f"{interval(at['sensitivity'])} {interval(at['specificity'])} {at['fn']} {at['fp']}"
        assert f"{name}{default} {at['threshold']:.4g} {shares}" in page.text
    for site, films in (("north", 50), ("south", 30)):
        assert f"{site} {films} {films // 2} {interval(entry['groups']['site'][site]['auc'])}" in page.text
    assert f"virus 20 {interval(entry['subtypes']['virus']['sensitivity'])}" in page.text
    found = entry["robustness"]
    worst = found["changed"][found["worst"]]
    told = " ".join(f"{worst[name]:.3f}" for name in ("auc", "sensitivity", "specificity", "balanced_accuracy"))
    assert f"{found['worst']} (worst) {told}" in page.text
    for line, kind in (("mean of these", "mean_"), ("unperturbed", "")):
        assert f"{line} {found[f'{kind}auc']:.3f} {found[f'{kind}balanced_accuracy']:.3f}" in page.text
    assert [chart.split()[0] for chart in page.charts] == [
        "ROC",
        "Precision-recall",
        "Confusion",
        "Histogram",
        "Calibration:",
        "Training",
        "AUC",
    ]
    assert f"{metrics['tp']} true positive, {metrics['fn']} missed" in page.charts[2]


def test_where_it_comes_from() -> None:
    page = card({"val": full_entry()})
    assert "Made 2026-01-01 00:00 UTC" in page.text
    assert "train 4,684 2,490 1,208 3,476 val 80 80 40 40" in page.text
    assert "Fingerprint of the data set 9f3c" in page.text
    assert "started from s3://weights/start.safetensors" in page.text
    assert "training epochs 2 · augment 0.5" in page.text
    assert "SHA-256 of the weights " + "ab" * 32 in page.text


def test_the_same_values_give_the_same_card() -> None:
    entry = full_entry()
    assert card({"val": entry}).html == card({"val": copy.deepcopy(entry)}).html


def test_text_from_elsewhere_is_text() -> None:
    page = card({"val": full_entry()}, dataset_fingerprint="<script>$x</script>")
    assert page.text.count("<script>$x</script>") == 2, "among the data and the CLAIM items"


def test_an_entry_of_an_earlier_version_has_fewer_charts() -> None:
    entry = {
        name: full_entry()[name] for name in ("split", "operating_point", "metrics", "operating_points", "subtypes")
    }
    page = card({"val": entry})
    assert [chart.split()[0] for chart in page.charts] == ["Confusion", "Training", "AUC"]
    assert interval(entry["metrics"]["auc"]) in page.text
    assert "Where the model looks" not in page.text


def test_a_bundle_that_says_little() -> None:
    page = read_page(render_card(small_spec("majority"), CALIBRATION, {}, {}, weights="ab" * 32))
    assert "does not record its films" in page.text
    assert "holds no evaluation" in page.text
    assert (page.charts, page.images) == ([], [])


def test_engines_and_what_unfamiliar_is() -> None:
    measured = {"films": 16, "version": "openvino 1", "mean_dp": 0.001, "max_dp": 0.02, "auc_change": -0.0001}
    flips = {"rule_out": {"films": 3, "share": 0.19, "farthest": 0.2}}
    nothing = {"mean_dp": None, "max_dp": None, "auc_change": None, "flips": {}}
    engines = {
        "openvino-bf16-cpu": {**measured, "flips": flips, "allowed": False, "reasons": ["3 of 16 <films> change"]},
        "openvino-fp32-cpu": {**measured, "flips": {}, "allowed": True, "reasons": []},
        "torch-bf16-cuda": {**measured, **nothing, "allowed": False, "reasons": ["cannot run"]},
    }
    distance = np.linspace(0.5, 1.5, 80, dtype=np.float32)
    for known, words in ((distance, "99th percentile 1.49. Drift"), (distance * np.nan, "with which to detect")):
        told = {"engines": engines, "fingerprint": fingerprint(FILMS.pixels, distance / 2, known)}
        page = card({"val": full_entry() | told})
        assert words in page.text
        assert "openvino 1 16 0.001 0.02 rule_out 3 -0.0001 no: 3 of 16 <films> change" in page.text
        assert "-0.0001 yes" in page.text
        assert "16 not measured no: cannot run" in page.text


def test_what_came_later_stands_on_the_report_only() -> None:
    entry = full_entry()
    since = Since(model_id="00112233aabbccdd", ledger=[{**entry, "split": "test", "when": "2026-11-21T09:31:00+00:00"}])
    page = card({"val": entry}, since)
    assert f"2026-11-21 09:31 UTC test 80 {interval(entry['metrics']['auc'])}" in page.text
    assert "Tested since 1 time see" in page.text
    assert "Model id 00112233aabbccdd" in page.text
    assert "Tested since" not in card({"val": entry}).text


class TestSamples:
    def entry(self, films: Films = FILMS, classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
        return samples(counts_bright(), films, probabilities(), CALIBRATION.threshold, classes)

    def test_the_surest_and_the_worst_are_shown(self) -> None:
        probability, ill = probabilities(), FILMS.labels == 1
        called = probability >= np.float32(CALIBRATION.threshold)
        found = self.entry()
        assert [(shown["kind"], shown["truth"]) for shown in found["films"]] == [
            *[("true positive", "PNEUMONIA")] * SURE,
            ("true negative", "NORMAL"),
            ("worst miss", "PNEUMONIA"),
            ("worst false alarm", "NORMAL"),
        ]
        told = [shown["probability"] for shown in found["films"]]
        surest = np.sort(probability[ill & called])[::-1][:SURE]
        worst = probability[ill & ~called].min(), probability[~ill & called].max()
        assert told == [*map(float, surest), float(probability[~ill & ~called].min()), *map(float, worst)]

    def test_the_pictures_are_the_film_and_its_map(self) -> None:
        shown = self.entry()["films"][0]
        at = int(np.where(FILMS.labels == 1, probabilities(), 0).argmax())
        film, heat = (
            np.asarray(Image.open(BytesIO(base64.b64decode(shown[name].partition(",")[2])))) for name in ("film", "map")
        )
        assert (film.shape, heat.shape) == ((SIDE, SIDE), (SIDE, SIDE, 3))
        small = np.asarray(Image.fromarray(film).resize(FILMS.pixels[at].shape, Image.Resampling.BOX))
        assert np.corrcoef(small.ravel(), FILMS.pixels[at].ravel())[0, 1] > 0.9
        warmth = heat[..., 0].astype(int) - heat[..., 2]
        assert warmth.max() > 60
        assert np.median(warmth) < 60, "and not everywhere"

    def test_true_positives_are_of_different_patients(self) -> None:
        one = np.full(len(FILMS), "one")
        films = Films(**{**vars(FILMS), "patients": one})
        kinds = [shown["kind"] for shown in self.entry(films=films)["films"]]
        assert kinds == ["true positive", "true negative", "worst miss", "worst false alarm"]

    def test_kinds_of_disease_are_named(self) -> None:
        kinds = np.where(FILMS.labels == 0, 0, np.where(FILMS.subtypes == "bacteria", 1, 2))
        films = Films(**{**vars(FILMS), "labels": kinds})
        found = self.entry(films=films, classes=("NORMAL", "BACTERIA", "VIRUS"))
        assert {shown["truth"] for shown in found["films"][:SURE]} <= {"BACTERIA", "VIRUS"}
        counts = {"val": {"films": 80, "patients": 80, "classes": {"NORMAL": 40, "BACTERIA": 20, "VIRUS": 20}}}
        spec = ModelSpec(name="cnn", classes=("NORMAL", "BACTERIA", "VIRUS"))
        page = card({"val": full_entry() | {"samples": found}}, spec=spec, counts=counts)
        assert "Split Films Patients NORMAL BACTERIA VIRUS val 80 80 40 20 20" in page.text
        assert "tells NORMAL, BACTERIA and VIRUS apart" in page.text
        assert f"true positive: {found['films'][0]['truth']}, probability" in page.text

    def test_the_card_shows_them_and_says_what_they_are(self) -> None:
        found = self.entry()
        page = card({"val": full_entry() | {"samples": found}})
        assert [image["src"] for image in page.images] == [
            shown[name] for shown in found["films"] for name in ("film", "map")
        ]
        assert all(image["alt"] for image in page.images)
        assert "This page holds images of patients" in page.text
        assert "not a finding" in page.text
        assert METHOD_NAMES[found["method"]] in page.text
        assert "images of patients" not in card({"val": full_entry()}).text

    def test_a_network_that_looks_nowhere_has_none(self) -> None:
        spec = small_spec("majority")
        majority = ScanClassifier(Preprocess(spec.preprocessing), build(spec)).eval()
        found = samples(majority, FILMS, probabilities(), CALIBRATION.threshold, CLASSES)
        assert found == {"method": None, "films": []}
        page = card({"val": full_entry() | {"samples": found}})
        assert page.images == []
        assert "does not depend on the film" in page.text


class TestClaim:
    def test_every_item_is_answered_or_owed(self) -> None:
        items = claim(small_spec(), CALIBRATION, full_entry(), LINEAGE)
        assert [item.number for item in items] == list(range(1, 45))
        assert all(item.answer or item.owed for item in items)
        # as they stand in the 2024 update
        names = {
            14: "Definition of method(s) used to obtain reference standard",
            20: "Level at which partitions are disjoint",
            30: "Robustness or sensitivity analysis",
            31: "Methods for explainability or interpretability",
            33: "Testing on external data",
            39: "Failure analysis of incorrect results",
            44: "Sources of funding and other support; role of funders",
        }
        assert all(items[number - 1].name.startswith(name) for number, name in names.items())

    def test_answers_are_this_models(self) -> None:
        entry = full_entry()
        told = {item.number: item.answer for item in claim(small_spec(), CALIBRATION, entry, LINEAGE)}
        at = entry["metrics"]
        assert interval(at["auc"]) in told[37]
        assert told[38] == (
            f"At balanced (0.45): sensitivity {interval(at['sensitivity'])}, specificity {interval(at['specificity'])}."
        )
        assert told[24] == "Pretrained weights: s3://weights/start.safetensors. Seed 5."
        assert told[26] == "The best validation AUC of 2 epochs."
        searched = {**LINEAGE, "study": "s3://study", "selection": [{"trial": 3}]}
        assert claim(small_spec(), CALIBRATION, entry, searched)[25].answer == (
            "The best validation AUC of 2 epochs, and of the trials of a study; of the few best, the one best on"
            " perturbed copies."
        )
        assert told[35].startswith("Included: train: 4,684 films of 2,490 patients; val")
        assert "9f3c" in told[7]
        assert told[31] == "None."

    def test_what_rayscan_cannot_know_is_not_made_up(self) -> None:
        items = claim(small_spec("majority"), CALIBRATION, None, {})
        unknown = {item.number for item in items if not item.answer}
        assert {4, 13, 14, 16, 18, 34, 36, 44} <= unknown, "whatever the bundle"
        assert {7, 23, 24, 25, 26, 30, 37, 38} <= unknown, "as this one says nothing of it"
        assert items[0].answer.startswith("No learning from pixels")
        page = read_page(render_card(small_spec("majority"), CALIBRATION, {}, {}, weights="ab" * 32))
        assert (
            "Image acquisition protocol Not known to rayscan: to be filled in by the owner of the films." in page.text
        )

    def test_every_way_to_make_maps_has_a_name(self) -> None:
        assert set(METHOD_NAMES) == set(SALIENCY_METHODS)


@pytest.mark.parametrize("films", [785, 20_000])
def test_a_card_of_many_films_stays_small(films: int) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(films) < 0.5).astype(np.int64)
    probability = (1 / (1 + np.exp(-rng.normal(3 * labels - 1.5, 1.5)))).astype(np.float32)
    entry = evaluation_entry(
        split="val", labels=labels, probability=probability, subtypes=np.full(films, ""), calibration=CALIBRATION
    )
    assert len(card({"val": entry}).html) < 150_000
