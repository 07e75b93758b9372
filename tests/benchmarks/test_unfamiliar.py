"""How many films of other kinds are refused as unfamiliar, at the share of familiar films that may be.

MobileNetV2 0.35 with its ImageNet weights, which no film changed, describes the films: what a trained network adds to
that is not measured here. Of each class of the Kermany films the last fifth, in the order of the archive, are held out:
every other one of them sets the limit, the rest say how many familiar films are refused. No foreign film took part in
anything. Faces are the hundred that scikit-image has, where it is installed (`pip install scikit-image`). Takes some
minutes.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from models.gate.checks import REFUSED
from models.networks.classifier import ScanClassifier, in_batches
from models.networks.familiarity import fit_familiarity
from models.networks.preprocess import Preprocess
from models.spec import ModelSpec, Preprocessing
from pipelines.decoding.decode import decode
from pipelines.ingest.dataset import places
from tuning.training.start import seeded_network

REAL, WEIGHTS = os.environ.get("RAYSCAN_REAL_DATA"), os.environ.get("RAYSCAN_REAL_WEIGHTS")
WIDE = "mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
SIDE = 224

Pixels = npt.NDArray[np.uint8]


@pytest.mark.bench
@pytest.mark.skipif(
    not (REAL and WEIGHTS), reason="RAYSCAN_REAL_DATA and RAYSCAN_REAL_WEIGHTS name no films and weights"
)
def test_most_films_of_other_kinds_are_refused() -> None:
    assert REAL
    assert WEIGHTS
    spec = ModelSpec(
        name="mobilenetv2_035",
        parameters={"same_padding": True},
        preprocessing=Preprocessing(size=SIDE, normalise="symmetric"),
    )
    network, _ = seeded_network(spec, str(Path(WEIGHTS, WIDE)), 0)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network).eval()

    def seen(films: Pixels) -> torch.Tensor:
        with torch.inference_mode():
            return in_batches(classifier.description, films)

    learned, limiting, familiar = _kermany(Path(REAL, "kermany_224", "train"))
    familiarity = fit_familiarity(seen(learned), seen(limiting))
    assert familiarity is not None

    def refused(films: Pixels) -> float:
        return float((familiarity(seen(films)) > familiarity.limit).float().mean())

    shares = {name: refused(films) for name, films in _foreign(Path(REAL), familiar[:200]).items()}
    of_familiar = refused(familiar)
    print(f"\n{len(learned)} films to learn from, {len(limiting)} for the limit; refused:")
    print(f"familiar ({len(familiar)} films held out) {of_familiar:.3f}")
    print("\n".join(f"{name} {share:.2f}" for name, share in shares.items()))
    assert of_familiar <= REFUSED
    assert shares.pop("adults") >= 0.75
    assert shares.pop("upper half") >= 0.7
    assert min(shares.values()) >= 0.95


def _kermany(folder: Path) -> tuple[Pixels, Pixels, Pixels]:
    """Films to learn from, to set the limit, and of the same kind."""
    parts: list[list[Pixels]] = [[], [], []]
    for label in ("NORMAL", "PNEUMONIA"):
        paths = sorted(folder.joinpath(label).iterdir(), key=lambda path: places([path.name], [None]))
        last = len(paths) * 4 // 5
        for films, chosen in zip(parts, (paths[:last:2], paths[last::2], paths[last + 1 :: 2]), strict=True):
            films.append(_decoded(chosen))
    learned, limiting, familiar = (np.concatenate(films) for films in parts)
    return learned, limiting, np.random.default_rng(0).permutation(familiar)


def _foreign(real: Path, chests: Pixels) -> Mapping[str, Pixels]:
    rng = np.random.default_rng(0)
    hips = [real / "dicom" / name for name in ("RG2_JPLL.dcm", "RG3_J2KI.dcm")]
    return {
        "adults": _decoded(sorted(real.joinpath("adult").glob("*/*.png"))),
        "hip and extremity": _decoded(hips),
        "negatives": 255 - chests,
        "turned by 90 degrees": np.rot90(chests, 1, (1, 2)).copy(),
        "turned by 180 degrees": np.rot90(chests, 2, (1, 2)).copy(),
        "left half": _resized(chests[:, :, : SIDE // 2]),
        "upper half": _resized(chests[:, : SIDE // 2]),
        "noise": rng.integers(0, 256, (60, SIDE, SIDE)).astype(np.uint8),
        "clouds": _resized(rng.integers(0, 256, (60, 14, 14)).astype(np.uint8)),
        **_faces(),
    }


def _faces() -> Mapping[str, Pixels]:
    if find_spec("skimage") is None:
        return {}
    from skimage.data import lfw_subset

    return {"faces": _resized((255 * lfw_subset()[:100]).astype(np.uint8))}


def _decoded(paths: list[Path]) -> Pixels:
    return np.stack([decode(path.read_bytes(), Preprocessing(size=SIDE)).pixels for path in paths])


def _resized(films: Pixels) -> Pixels:
    return np.stack([np.asarray(Image.fromarray(film).resize((SIDE, SIDE))) for film in films])
