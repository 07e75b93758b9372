"""Maps point at what was put there; whatever the network, they are maps."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.errors import InputError
from models.explain import SALIENCY_METHODS, SaliencyMethod, method_for, picture, pointing_game, saliency
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from pipelines.phantom import film
from tests.models.synthetic import SIZE, blob_films, counts_bright, small_spec

SIDE = SIZE


def untrained(spec: ModelSpec) -> ScanClassifier:
    torch.manual_seed(4)
    return ScanClassifier(Preprocess(spec.preprocessing), build(spec)).eval()


@pytest.mark.parametrize("method", SALIENCY_METHODS)
@given(row=st.integers(0, 20), column=st.integers(0, 20), scale=st.sampled_from([(1, 1), (2, 3)]))
@settings(max_examples=10, deadline=None)
def test_the_peak_lies_on_what_the_output_depends_on(
    method: SaliencyMethod, row: int, column: int, scale: tuple[int, int]
) -> None:
    pixels = np.full((SIDE, SIDE), 20, np.uint8)
    pixels[row : row + 12, column : column + 12] = 250
    shown = np.kron(pixels, np.ones(scale, np.uint8))
    heat = saliency(counts_bright(), shown, method=method)
    assert heat.shape == shown.shape
    assert heat.dtype == np.float32
    assert (heat.min(), heat.max()) == (0, 1)
    at = np.unravel_index(heat.argmax(), heat.shape)
    assert shown[at] == 250


def test_cam_of_a_network_of_means_is_what_its_last_maps_add() -> None:
    """Every place adds its own activation to the mean: after scaling the map is the activations themselves."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, SIDE, SIDE), dtype=np.uint8)
    added = np.maximum(pixels.reshape(5, 8, 4, 8, 4).mean(axis=(2, 4)) / 255 - 0.5, 0)
    heat = saliency(counts_bright(), pixels, method="cam")
    centres = heat[:, 1::4, 1::4] + heat[:, 2::4, 2::4]  # bilinear between patches: the two lie around each centre
    assert np.corrcoef(centres.ravel(), added.ravel())[0, 1] > 0.97
    assert not saliency(counts_bright(), np.zeros((2, SIDE, SIDE), np.uint8), method="cam").any()


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_the_same_film_gets_the_same_map_alone_in_a_batch_and_in_inference_mode(method: SaliencyMethod) -> None:
    pixels = blob_films(20).pixels
    classifier = untrained(small_spec(depth=1, width=8))
    heat = saliency(classifier, pixels, method=method)
    with torch.inference_mode():
        again = saliency(classifier, pixels, method=method)
    np.testing.assert_array_equal(heat, again)
    np.testing.assert_allclose(saliency(classifier, pixels[17], method=method), heat[17], atol=1e-4)
    assert saliency(classifier, pixels[:0], method=method).shape == (0, SIDE, SIDE)
    assert all(weight.grad is None and weight.requires_grad for weight in classifier.parameters())


@pytest.mark.parametrize(
    ("spec", "has_maps"),
    [
        (small_spec("cnn", 64), True),
        (small_spec("mlp"), False),
        (small_spec("test_resnet", 96), True),
        (small_spec("test_convnext", 224), True),
        (small_spec("test_vit", 160), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_network_has_maps(spec: ModelSpec, has_maps: bool) -> None:
    size = spec.preprocessing.size
    classifier = untrained(spec)
    pixels = blob_films(2, size=size, seed=2).pixels
    for method in SALIENCY_METHODS:
        if method == "cam" and not has_maps:
            with pytest.raises(InputError, match="choose occlusion or gradients"):
                saliency(classifier, pixels, method=method)
            continue
        heat = saliency(classifier, pixels, method=method)
        assert heat.shape == pixels.shape
        assert heat.min() == 0
        np.testing.assert_array_equal(heat.max(axis=(1, 2)), 1)


@pytest.mark.parametrize("method", ["occlusion", "gradients"])
def test_an_output_that_does_not_depend_on_the_film_has_an_empty_map(method: SaliencyMethod) -> None:
    assert not saliency(untrained(small_spec("majority")), blob_films(3).pixels, method=method).any()


def test_bfloat16_points_at_the_same_place() -> None:
    pixels = np.full((SIDE, SIDE), 20, np.uint8)
    pixels[16:24, 4:12] = 250
    heat = saliency(counts_bright().to_precision(torch.bfloat16), pixels, method="cam")
    assert pixels[np.unravel_index(heat.argmax(), heat.shape)] == 250


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        (small_spec("cnn", 64), "occlusion"),
        (small_spec("majority"), "occlusion"),
        (small_spec("resnet18", 224), "cam"),
        (small_spec("vit_tiny_patch16_224", 224), "gradients"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_small_networks_are_covered_patch_by_patch_large_ones_are_read(spec: ModelSpec, method: SaliencyMethod) -> None:
    assert method_for(untrained(spec)) == method


def test_wrong_input_is_refused() -> None:
    classifier = counts_bright()
    film_of_floats = np.zeros((SIDE, SIDE), np.float32)
    with pytest.raises(InputError, match="decode first"):
        saliency(classifier, film_of_floats)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choose from occlusion"):
        saliency(classifier, blob_films(1).pixels, method="guess")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"eval\(\)"):
        saliency(classifier.train(), blob_films(1).pixels)


# --- the pointing game ------------------------------------------------------------------------------------------------


def phantoms(seeds: range, *, side: int, opacity: bool | None = None) -> tuple[npt.NDArray[np.uint8], ...]:
    shown = [
        film(np.random.default_rng(n), opacity=n % 2 == 1 if opacity is None else opacity, size=side) for n in seeds
    ]
    return np.stack([pixels for pixels, _ in shown]), np.stack([mask for _, mask in shown])


@pytest.fixture(scope="module")
def trained() -> ScanClassifier:
    """A small cnn after a few rounds of phantom films."""
    parameters = {"depth": 3, "width": 16, "pooling": "max"}
    spec = ModelSpec(name="cnn", parameters=parameters, preprocessing=Preprocessing(size=96))
    pixels, _ = phantoms(range(500), side=96)
    labels = torch.arange(500) % 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = ScanClassifier(Preprocess(spec.preprocessing), build(spec)).to(memory_format=torch.channels_last)
        epochs, batch = 8, 20
        optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=epochs * 500 // batch)
        for _ in range(epochs):
            for chosen in torch.randperm(500).split(batch):
                loss = nn.functional.cross_entropy(classifier.logits(torch.tensor(pixels[chosen])), labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return classifier.eval()


@pytest.mark.parametrize(("method", "least"), [("occlusion", 0.9), ("gradients", 0.8), ("cam", 0.6)])
def test_maps_point_into_the_opacity_of_unseen_patients(
    trained: ScanClassifier, method: SaliencyMethod, least: float
) -> None:
    pixels, masks = phantoms(range(10_000, 10_040), side=128, opacity=True)
    heat = saliency(trained, pixels, method=method)
    hits, films = pointing_game(heat, masks)
    assert films == 40
    assert hits / films >= least
    by_chance, _ = pointing_game(heat, np.roll(masks, 1, axis=0))
    assert by_chance < hits / 1.5, "another patient's opacity must not do as well"


def test_pointing_game_counts_peaks_inside() -> None:
    heat = np.zeros((4, 20, 20), np.float32)
    findings = np.zeros((4, 20, 20), np.bool_)
    heat[[0, 1, 2], 5, 5] = 1
    findings[0, 4:8, 4:8] = findings[1, 4:8, 7:9] = findings[3, 0, 0] = True
    assert pointing_game(heat, findings) == (1, 3), "a film without a finding is none, an empty map is no hit"
    assert pointing_game(heat, findings, tolerance=0.1) == (2, 3), "2 of 20 pixels away"
    with pytest.raises(InputError, match="stretch them alike"):
        pointing_game(heat, findings[:, :10])


# --- the picture ------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_film_with_warm_colours_where_the_map_is() -> None:
    pixels = np.random.default_rng(2).integers(0, 200, (40, 50), dtype=np.uint8)
    heat = np.zeros((40, 50), np.float32)
    heat[10:20, 10:20] = 1.0
    heat[30:35, 30:35] = 0.5
    shown = picture(pixels, heat)
    assert (shown.dtype, shown.shape) == (np.uint8, (40, 50, 3))
    colours = shown.astype(int)
    assert (colours[heat == 0] == pixels[heat == 0][:, None]).all()
    warmth = colours[..., 0] - colours[..., 2]
    assert warmth[heat > 0].min() > 20, "red above blue wherever there is a map"
    strong, faint = heat == 1, heat == 0.5
    assert np.corrcoef(colours[strong].mean(axis=1), pixels[strong])[0, 1] > 0.99, "the film is seen through it"
    assert np.corrcoef(colours[faint].mean(axis=1), pixels[faint])[0, 1] > 0.99


def test_a_picture_has_the_size_asked_for() -> None:
    pixels, heat = np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.float32)
    assert picture(pixels, heat, side=96).shape == (96, 96, 3)
    with pytest.raises(InputError, match="same shape"):
        picture(pixels, heat[:10])
