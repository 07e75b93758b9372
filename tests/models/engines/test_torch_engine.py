"""The branches of a GPU's engines, entered on a CPU: the kind is a value, and so is the device."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.engines.agreement import agree
from models.engines.choice import EngineBuilder, load_engine
from models.engines.engine import EngineError
from models.engines.machine import EngineKind, Machine
from models.engines.torch_engine import TorchEngine
from models.networks.float32 import exact_float32
from models.spec import ModelSpec
from tests.models.engines.test_choice import FILMS, HERE, agreements, bundle, classifier, entry
from tests.models.synthetic import blob_films, small_spec

LIKE_A_GPU = Machine(device="cpu", native_bf16=True, native_fp16=True, openvino=None, torch=HERE.torch)


class GpuEngines(Machine):
    """A CPU that offers a GPU's engines, to run them without one."""

    @property
    def has_gpu(self) -> bool:
        return True

    def kinds(self) -> tuple[EngineKind, ...]:
        return tuple(
            EngineKind(engine=engine, precision=precision, device="cpu")  # type: ignore[arg-type]
            for engine, precision in (("torch-compile", "fp32"), ("torch-eager", "fp16"), ("torch-eager", "fp32"))
        )


PRETENDED = GpuEngines(device="cpu", native_bf16=True, native_fp16=True, openvino=None, torch=HERE.torch)


def kind(engine: str, precision: str) -> EngineKind:
    return EngineKind(engine=engine, precision=precision, device="cpu")  # type: ignore[arg-type]


def torch_engine(engine: str, precision: str, spec: ModelSpec | None = None) -> TorchEngine:
    return TorchEngine(classifier(spec or small_spec()), kind(engine, precision), "cpu", classes=2, batch=8)


@pytest.fixture
def _broken_compiler() -> Iterator[None]:
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (None, "/nonexistent/compiler"), "fx_graph_cache": False}):
        yield


@pytest.mark.parametrize(("precision", "mean", "most"), [("bf16", 0.06, 0.25), ("fp16", 0.008, 0.03)])
def test_lower_precisions_come_close_and_float16_closest(precision: str, mean: float, most: float) -> None:
    """Networks without training, their small differences drawn out over all probabilities: worse than any real one."""
    reference, found = (
        torch_engine("torch-eager", "fp32")(FILMS.pixels),
        torch_engine("torch-eager", precision)(FILMS.pixels),
    )
    apart = np.abs(found.probabilities - reference.probabilities)
    assert 0 < apart.mean() < mean
    assert apart.max() < most
    assert found.probabilities.dtype == found.distance.dtype == np.float32
    np.testing.assert_allclose(found.distance, reference.distance, rtol=0.1)


def test_films_for_which_float16_overflows_are_run_again_in_float32() -> None:
    """Else they would have no probability, or an infinite distance, for which they would be refused."""
    whole = classifier(small_spec())
    with torch.no_grad():
        next(whole.network.parameters()).mul_(3e5)
    reference = TorchEngine(whole, kind("torch-eager", "fp32"), "cpu", classes=2, batch=8)
    expected = reference(FILMS.pixels)
    engine = TorchEngine(reference._run.classifier, kind("torch-eager", "fp16"), "cpu", classes=2, batch=8)  # type: ignore[attr-defined]
    with torch.inference_mode():
        bare = engine._run(torch.from_numpy(FILMS.pixels))[0]
    assert not torch.isfinite(bare).all()  # the test is of what it says
    found = engine(FILMS.pixels)
    assert np.isfinite(found.probabilities).all()
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=0.05)
    assert np.isfinite(found.distance).all()


def test_a_compiled_engine_runs_whole_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler, which takes half a minute of a CPU, is left out: what counts is what its product is given."""
    seen: list[int] = []

    def compiled(graph: Any, *, dynamic: bool) -> Any:
        assert not dynamic
        graph.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        return graph

    monkeypatch.setattr(torch, "compile", compiled)
    engine, eager = torch_engine("torch-compile", "fp32"), torch_engine("torch-eager", "fp32")
    assert seen == [8]  # it compiles when it first runs, which is when it is built
    for count in (0, 3, 8, 21):
        found = engine(FILMS.pixels[:count])
        np.testing.assert_allclose(found.probabilities, eager(FILMS.pixels[:count]).probabilities, atol=1e-4)
    assert set(seen) == {8}


@pytest.mark.usefixtures("_broken_compiler")
def test_a_compiler_that_fails_is_told_when_the_engine_is_built() -> None:
    """torch.compile itself succeeds; the compiler runs, and fails, at the first batch."""
    with pytest.raises(EngineError, match=r"^torch\.compile failed: .+") as caught:
        torch_engine("torch-compile", "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_broken_compiler")
def test_a_failed_compilation_costs_a_bundle_nothing_but_that_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = bundle(tmp_path / "b", agreements(torch_compile_fp32_cpu=entry(version=f"torch {HERE.torch}")))
    with caplog.at_level(logging.WARNING, logger="rayscan"):
        engine = load_engine(made, machine=PRETENDED, batch=8)
    assert engine.name == "torch-eager-fp32-cpu"
    assert "torch.compile failed" in engine.choice.reason
    (line,) = [record.getMessage() for record in caplog.records if record.name == "rayscan"]
    assert line.startswith("torch-compile-fp32-cpu is left out: torch.compile failed: ")
    found = agree(made, blob_films(40, seed=6), PRETENDED)  # what a promotion does
    assert found["torch-compile-fp32-cpu"].reasons[0].startswith("torch.compile failed")
    assert found["torch-eager-fp16-cpu"].films == 40


def _flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_nothing_that_calls_itself_float32_computes_in_tensor_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the process asked for it; and the process has its own setting back afterwards."""
    seen: list[tuple[str, bool]] = []
    torch.set_float32_matmul_precision("high")
    try:
        before = _flags()
        assert before == ("high", True)
        whole = classifier(small_spec())
        whole.network.register_forward_hook(lambda *_: seen.append(_flags()))
        whole.familiarity = None
        TorchEngine(whole, kind("torch-eager", "fp32"), "cpu", classes=2, batch=8)(FILMS.pixels)
        assert seen == [("highest", False)]
        assert _flags() == before
        with pytest.raises(ZeroDivisionError), exact_float32():
            raise ZeroDivisionError
        assert _flags() == before
        with torch.backends.cudnn.flags(enabled=True, deterministic=True), exact_float32():
            assert torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_builder_leaves_the_classifier_it_copies_in_float32() -> None:
    whole = classifier(small_spec())
    settings: dict[str, Any] = {"size": 32, "classes": 2, "batch": 8}
    EngineBuilder(lambda: whole, None, LIKE_A_GPU, **settings).build(kind("torch-eager", "fp16"))
    assert {value.dtype for value in whole.network.parameters()} == {torch.float32}
