"""Every engine gives what eager torch gives, and only those that do are offered."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.bundle import Bundle, save_bundle
from models.engines.agreement import compare
from models.engines.choice import ROUNDING, EngineBuilder, fastest, load_engine, offered
from models.engines.engine import Engine
from models.engines.export import export_graph
from models.engines.machine import EngineKind, Machine, this_machine
from models.errors import InputError
from models.networks.classifier import ScanClassifier
from models.networks.familiarity import fit_familiarity
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from models.statistics.calibration import Calibration
from pipelines.pages.card import render_card
from tests.models.synthetic import blob_films, small_spec

HERE = this_machine("cpu")
PLAIN = Machine(device="cpu", native_bf16=False, openvino=None, torch=HERE.torch)
"""A CPU without bfloat16, and without OpenVINO."""
NATIVE = replace(HERE, native_bf16=True)
POINTS = {"balanced": 0.5, "rule_out": 0.3}
FILMS = blob_films(45, seed=4)
OPENVINO_FP32 = EngineKind(engine="openvino", precision="fp32", device="cpu")
OPENVINO_BF16 = EngineKind(engine="openvino", precision="bf16", device="cpu")
EAGER = EngineKind(engine="torch-eager", precision="fp32", device="cpu")


def classifier(spec: ModelSpec) -> ScanClassifier:
    """Untrained, but with probabilities and distances that differ from film to film."""
    torch.manual_seed(3)
    network = build(spec).eval()
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network)
    films = torch.from_numpy(blob_films(60, seed=9).pixels)
    with torch.inference_mode():
        if spec.name != "majority":
            logits = classifier.logits(films)
            difference = logits[:, 1] - logits[:, 0]
            classifier.calibrate.temperature.fill_(float(difference.std()) / 2)
            last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
            last.bias[1] -= difference.mean()
            classifier.familiarity = fit_familiarity(classifier.description(films))
    return classifier


def builder(spec: ModelSpec, machine: Machine = NATIVE, **settings: Any) -> EngineBuilder:
    whole = classifier(spec)
    sizes = {"size": spec.preprocessing.size, "classes": 2, "batch": 8}
    return EngineBuilder(lambda: whole, export_graph(whole), machine, **{**sizes, **settings})


@functools.cache
def small_graph() -> tuple[bytes, bytes]:
    """To export one takes seconds."""
    return export_graph(classifier(small_spec()))


def bundle(folder: Path, evaluation: dict[str, Any] | None = None, spec: ModelSpec | None = None) -> Bundle:
    whole = classifier(spec or small_spec())
    saved = save_bundle(
        folder,
        render_card=render_card,
        spec=spec or small_spec(),
        state_dict=whole.network.state_dict(),
        calibration=Calibration(temperature=float(whole.calibrate.temperature), operating_points=POINTS),
        evaluation={},
        lineage={},
        familiarity=whole.familiarity,
        graph=export_graph(whole) if spec else small_graph(),
    )
    return replace(saved, evaluation=evaluation or {})


def entry(*, allowed: bool = True, version: str = HERE.version(OPENVINO_BF16), max_dp: float = 1e-6) -> dict[str, Any]:
    """What promotion leaves of one engine, as far as loading reads it."""
    reasons = [] if allowed else ["7 of 100 films change sides"]
    return {"allowed": allowed, "reasons": reasons, "version": version, "max_dp": max_dp}


def agreements(**engines: dict[str, Any]) -> dict[str, Any]:
    return {"val": {"engines": {name.replace("_", "-"): value for name, value in engines.items()}}}


def measured(**engines: dict[str, Any]) -> list[dict[str, Any]]:
    """As `Bundle.agreements`, of promotion alone."""
    return [agreements(**engines)["val"]["engines"]]


@pytest.fixture(scope="module", params=["cnn", "mlp", "majority", "shrinking"])
def engines(request: pytest.FixtureRequest) -> dict[str, Engine]:
    """Of one model, all engines there are on a CPU with native bfloat16."""
    spec = small_spec(request.param if request.param != "shrinking" else "cnn")
    if request.param == "shrinking":
        spec = replace(spec, preprocessing=Preprocessing(size=16, decoded_size=32, normalise="symmetric"))
    made = builder(spec)
    kinds = [kind for kind in NATIVE.kinds() if kind.precision == "fp32" or HERE.native_bf16]
    return {kind.name: made.build(kind) for kind in kinds}


def test_float32_engines_agree_to_rounding(engines: dict[str, Engine]) -> None:
    reference = engines[EAGER.name](FILMS.pixels)
    found = engines[OPENVINO_FP32.name](FILMS.pixels)
    assert found.probabilities.dtype == found.distance.dtype == np.float32
    assert np.abs(found.probabilities - reference.probabilities).max() <= ROUNDING
    np.testing.assert_allclose(found.distance, reference.distance, rtol=1e-3)


@pytest.mark.skipif(not HERE.native_bf16, reason="bfloat16 is not native on this CPU")
def test_bfloat16_comes_close(engines: dict[str, Engine]) -> None:
    """Networks without training, their small differences drawn out over all probabilities: worse than any real one."""
    reference, found = engines[EAGER.name](FILMS.pixels), engines[OPENVINO_BF16.name](FILMS.pixels)
    apart = np.abs(found.probabilities - reference.probabilities)
    assert apart.mean() < 0.06
    assert apart.max() < 0.25
    known = np.isfinite(reference.distance)
    assert (np.isfinite(found.distance) == known).all()
    if known.any():
        assert np.abs(found.distance / reference.distance - 1).mean() < 0.1


def test_engines_take_any_number_read_only_and_of_another_size(engines: dict[str, Engine]) -> None:
    one_by_one = np.concatenate([engines[EAGER.name](film[None]).probabilities for film in FILMS.pixels])
    view = FILMS.pixels.view()
    view.flags.writeable = False
    larger = blob_films(3, size=48).pixels
    for kind in (EAGER, OPENVINO_FP32):
        engine = engines[kind.name]
        for count in (1, 7, 8, 9, 45):
            np.testing.assert_allclose(engine(view[:count]).probabilities, one_by_one[:count], atol=ROUNDING)
        # every second film: an array that is not contiguous
        np.testing.assert_allclose(engine(FILMS.pixels[::2]).probabilities, one_by_one[::2], atol=ROUNDING)
        nothing = engine(FILMS.pixels[:0])
        assert nothing.probabilities.shape == (0, 2)
        assert nothing.distance.shape == (0,)
        np.testing.assert_allclose(
            engine(larger).probabilities, engines[EAGER.name](larger).probabilities, atol=ROUNDING
        )


@pytest.mark.parametrize("wrong", [np.zeros((2, 32, 32), dtype=np.float32), np.zeros((32, 32), dtype=np.uint8)])
def test_engines_refuse_what_are_no_films(engines: dict[str, Engine], wrong: npt.NDArray[Any]) -> None:
    for engine in engines.values():
        with pytest.raises(InputError, match="uint8 films"):
            engine(wrong)


def test_models_without_features_have_no_distance(tmp_path: Path) -> None:
    assert np.isnan(builder(small_spec("majority")).build(OPENVINO_FP32)(FILMS.pixels).distance).all()
    assert np.isfinite(load_engine(bundle(tmp_path), machine=PLAIN)(FILMS.pixels).distance).all()


def test_an_engine_needs_a_measured_agreement_and_bfloat16_a_native_cpu_and_the_same_version() -> None:
    names = lambda offers: [kind.name for kind in offers[0]]  # noqa: E731
    eager, both = ["torch-eager-fp32-cpu"], ["openvino-bf16-cpu", "openvino-fp32-cpu"]
    assert names(offered([], NATIVE, None)) == eager
    allowed = measured(openvino_bf16_cpu=entry(), openvino_fp32_cpu=entry(version="openvino 1.0"))
    assert names(offered(allowed, NATIVE, None)) == both
    assert names(offered(allowed, NATIVE, "fp32")) == both[1:]
    assert names(offered(allowed, NATIVE, "bf16")) == both[:1]
    assert names(offered(allowed, replace(NATIVE, native_bf16=False), None)) == both[1:]
    assert names(offered(allowed, replace(NATIVE, openvino=None), None)) == eager
    offers, refused = offered(measured(openvino_bf16_cpu=entry(version="openvino 1.0")), NATIVE, None)
    assert [kind.name for kind in offers] == eager
    assert "openvino 1.0" in refused["openvino-bf16-cpu"]


def test_float32_that_is_not_exact_is_not_offered() -> None:
    offers, refused = offered(measured(openvino_fp32_cpu=entry(max_dp=2 * ROUNDING)), NATIVE, "fp32")
    assert [kind.name for kind in offers] == ["torch-eager-fp32-cpu"]
    assert refused["openvino-fp32-cpu"] == "moves probabilities by 0.0002"


def test_a_measured_disagreement_refuses_any_engine_but_the_reference() -> None:
    every = {kind.name.replace("-", "_"): entry(allowed=False) for kind in NATIVE.kinds()}
    offers, refused = offered(measured(**every), NATIVE, None)
    assert [kind.name for kind in offers] == ["torch-eager-fp32-cpu"]
    assert set(refused.values()) == {"7 of 100 films change sides"}


def test_gpu_engines_are_offered_as_they_were_measured() -> None:
    gpu = replace(NATIVE, device="cuda:1")
    assert [kind.name for kind in offered([], gpu, None)[0]] == ["torch-eager-fp32-cuda"]
    version = f"torch {HERE.torch}"
    found = measured(
        torch_compile_bf16_cuda=entry(version=version), torch_eager_bf16_cuda=entry(version=version, allowed=False)
    )
    assert [kind.name for kind in offered(found, gpu, None)[0]] == [
        "torch-compile-bf16-cuda",
        "torch-eager-fp32-cuda",
    ]
    assert all("bf16" not in kind.name for kind in replace(gpu, native_bf16=False).kinds())


def test_the_fastest_is_taken_unless_a_preferred_one_is_about_as_fast() -> None:
    kinds = [OPENVINO_BF16, OPENVINO_FP32, EAGER]
    for rates, expected in (
        ((300, 200, 100), OPENVINO_BF16),
        ((100, 200, 300), EAGER),
        ((100, 110, 105), OPENVINO_BF16),
        ((100, 190, 200), OPENVINO_FP32),
    ):
        named = {kind.name: float(rate) for kind, rate in zip(kinds, rates, strict=True)}
        assert fastest(kinds, named)[0] == expected
    assert fastest([EAGER], {EAGER.name: 1.0}) == (EAGER, "the only engine allowed here")


@pytest.mark.skipif(not HERE.native_bf16, reason="bfloat16 is not native on this CPU")
def test_bundle_whose_bfloat16_flips_films_is_scored_in_float32(tmp_path: Path) -> None:
    """From the comparison to the choice: operating points amid the films make bfloat16 flip some."""
    made = builder(small_spec())
    reference, found = (made.build(kind)(FILMS.pixels) for kind in (EAGER, OPENVINO_BF16))
    before, after = (1 - inference.probabilities[:, 0].astype(float) for inference in (reference, found))
    most = int(np.abs(after - before).argmax())
    points = {"balanced": (before[most] + after[most]) / 2}
    verdict = compare(reference, found, FILMS.labels, points, version=NATIVE.version(OPENVINO_BF16))
    assert verdict.flips["balanced"].films >= 1
    refused = agreements(openvino_bf16_cpu=verdict.to_json())
    engine = load_engine(bundle(tmp_path / "b", refused), machine=NATIVE)
    assert engine.choice.precision == "fp32"
    assert "change sides at balanced" in engine.choice.reason
    with pytest.raises(InputError, match=r"no engine in bf16 for this machine: .*change sides"):
        load_engine(bundle(tmp_path / "c", refused), machine=NATIVE, precision="bf16")


@pytest.mark.skipif(not HERE.native_bf16, reason="bfloat16 is not native on this CPU")
def test_the_choice_says_what_was_taken_and_why(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", agreements(openvino_bf16_cpu=entry(), openvino_fp32_cpu=entry()))
    engine = load_engine(made, device="cpu")
    choice = engine.choice
    assert choice.name == engine.name == f"{choice.engine}-{choice.precision}-cpu"
    assert set(choice.films_per_second) == {"openvino-bf16-cpu", "openvino-fp32-cpu"}
    assert all(rate > 0 for rate in choice.films_per_second.values())
    assert choice.to_json()["version"] == HERE.version(OPENVINO_BF16)
    assert load_engine(made, precision="bf16").name == "openvino-bf16-cpu"
    exact = load_engine(made, precision="fp32")
    assert exact.choice.precision == "fp32"
    reference = load_engine(made, machine=PLAIN)
    assert reference.name == "torch-eager-fp32-cpu"
    apart = np.abs(exact(FILMS.pixels).probabilities - reference(FILMS.pixels).probabilities)
    assert apart.max() <= ROUNDING


def test_a_precision_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown precision 'int8'; choose fp32 or fp16 or bf16"):
        load_engine(bundle(tmp_path), precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no engine in fp16 for this machine: none exists; leave the precision"):
        load_engine(bundle(tmp_path / "b"), precision="fp16", device="cpu")


def test_what_was_found_later_in_this_very_version_counts_most() -> None:
    """A GPU machine with a newer torch does not take from an older one what it was allowed there."""
    gpu = replace(NATIVE, device="cuda", native_fp16=True)
    old, here = {"version": "torch 1.0"}, {"version": f"torch {HERE.torch}"}
    fp16 = "torch_eager_fp16_cuda"
    names = lambda *found: [kind.name for kind in offered(found, gpu, "fp16")[0]]  # noqa: E731
    (refused,) = measured(**{fp16: entry(allowed=False, **here)})
    (allowed,) = measured(**{fp16: entry(**here)})
    (elsewhere,) = measured(**{fp16: entry(**old)})
    assert names(refused, allowed) == names(allowed, elsewhere) == ["torch-eager-fp16-cuda"]
    assert names(allowed, refused) == names(elsewhere) == names(refused, elsewhere) == []


def test_threads_are_set_for_the_process(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b")
    load_engine(made, machine=PLAIN, threads=2)
    assert torch.get_num_threads() == 2
    load_engine(made, machine=PLAIN, threads=1)
    assert torch.get_num_threads() == 1
