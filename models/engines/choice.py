"""Chooses the engine that runs a bundle on this machine: the fastest one that agrees with eager torch in float32.

A faster engine may round differently, and bfloat16 does: probabilities move, films near an operating point change
sides. So an engine may run a bundle only if promotion, or later `rayscan agree`, compared it with eager torch in
float32 on the validation films and found it close enough (`models/engines/agreement.py`); in bfloat16 and float16 only
in the very version that was compared.
Those that may are timed for a moment when the bundle is loaded. The fastest runs, unless one that is preferred to it
(`Machine.kinds`) is about as fast.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.engines.allocator import keep_memory
from models.engines.engine import Engine, EngineError, Inference
from models.engines.machine import PRECISIONS, EngineKind, Machine, Precision, choose_device, this_machine
from models.engines.openvino_engine import OpenVINOEngine, read_graph
from models.errors import InputError

if TYPE_CHECKING:
    from models.networks.classifier import ScanClassifier

__all__ = ["ChosenEngine", "Engine", "EngineChoice", "EngineError", "Inference", "load_engine"]

CPU_BATCH: Final = 8
GPU_BATCH: Final = 64
ROUNDING: Final = 1e-4
"""How far the probabilities of two engines in float32 may differ: their sums run in another order."""
PROBE_SECONDS: Final = 0.2
PROBE_ROUNDS: Final = 12
"""What ends the timing, after one warm-up of each engine; each is timed at least once."""
WORTH_CHANGING: Final = 1.2
"""How many times faster an engine must be than one preferred to it. Timings on a busy machine scatter; without this,
actors of one run would choose differently and one table would hold probabilities of several precisions."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine that was chosen, and why; recorded with the scores."""

    name: str
    engine: str
    precision: str
    device: str
    """As torch names it, for example `cuda:0`."""
    version: str
    """Library and version."""
    reason: str
    """One line for the person who reads the run."""
    films_per_second: Mapping[str, float]
    """Name of each engine that was timed -> its speed."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "films_per_second": dict(self.films_per_second)}


@dataclass(frozen=True, kw_only=True)
class ChosenEngine:
    """An engine and why it was chosen."""

    choice: EngineChoice
    engine: Engine

    @property
    def name(self) -> str:
        """Engine, precision and device."""
        return self.choice.name

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch uint8 [N, H, W]; see `Engine`."""
        return self.engine(pixels)


class EngineBuilder:
    """Builds the engines of one classifier of C classes on one machine.

    `classifier` is called when torch is needed; `graph` are the XML and weights of its exported graph, if it has one.
    OpenVINO takes `threads`.
    """

    def __init__(
        self,
        classifier: "Callable[[], ScanClassifier]",
        graph: tuple[bytes, bytes] | None,
        machine: Machine,
        *,
        size: int,
        classes: int,
        batch: int,
        threads: int = 1,
    ) -> None:
        self.machine = machine
        self.batch = batch
        self._classifier = classifier
        self._graph = graph
        self._size = size
        self._classes = classes
        self._threads = threads

    def build(self, kind: EngineKind) -> Engine:
        """One engine. Raises `EngineError` where it cannot run this network."""
        if kind.engine != "openvino":
            from models.engines.torch_engine import TorchEngine  # noqa: PLC0415 (two seconds that OpenVINO does without)

            classifier = copy.deepcopy(self._classifier())
            return TorchEngine(classifier, kind, self.machine.device, classes=self._classes, batch=self.batch)
        if self._graph is None:
            raise EngineError("the bundle holds no graph for OpenVINO")
        return OpenVINOEngine(
            read_graph(*self._graph),
            kind,
            size=self._size,
            classes=self._classes,
            batch=self.batch,
            threads=self._threads,
        )


def load_engine(
    bundle: Bundle,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    batch: int | None = None,
    machine: Machine | None = None,
) -> ChosenEngine:
    """The fastest engine that may run this bundle on this machine, found by timing those allowed for a moment.

    `device` is `cpu`, `cuda` or `cuda:N`; None takes a GPU when there is one. `threads` sets torch's for the whole
    process, and OpenVINO's; None leaves torch's and gives OpenVINO all cores. `precision` takes engines of that
    precision only, None whatever is allowed. `batch` is the number of films an engine of fixed batch runs at once (8 on
    a CPU, 64 on a GPU). `machine` replaces what was found out about this one. Raises `InputError` when no engine of
    that precision may run the bundle here.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; choose {' or '.join(PRECISIONS)}")
    machine = machine or this_machine(device if device == "cpu" else str(choose_device(device)))
    if not machine.has_gpu:
        keep_memory()
    batch = batch or (GPU_BATCH if machine.has_gpu else CPU_BATCH)
    offers, refused = offered(bundle.agreements, machine, precision)
    builder = EngineBuilder(
        lambda: _on_threads(bundle, threads),
        bundle.graph(),
        machine,
        size=bundle.spec.preprocessing.size,
        classes=len(bundle.spec.classes),
        batch=batch,
        threads=threads or os.cpu_count() or 1,
    )
    engines: dict[EngineKind, Engine] = {}
    for kind in offers:
        try:
            engines[kind] = builder.build(kind)
        except EngineError as error:
            refused[kind.name] = str(error)
            log.warning("%s is left out: %s", kind.name, error)
    if not engines:
        raise InputError(
            f"model {bundle.model_id} has no engine{f' in {precision}' if precision else ''} for this machine:"
            f" {_listed(refused)}; leave the precision open"
        )
    rates = _films_per_second(engines, probe_films(batch, bundle.spec.preprocessing.film_size))
    kind, why = fastest(list(engines), rates)
    choice = EngineChoice(
        name=kind.name,
        engine=kind.engine,
        precision=kind.precision,
        device=machine.device,
        version=machine.version(kind),
        reason=f"{why}; not offered: {_listed(refused)}" if refused else why,
        films_per_second={name: round(rate, 1) for name, rate in rates.items()},
    )
    log.info("model %s runs on %s: %s", bundle.model_id, choice.name, choice.reason)
    return ChosenEngine(choice=choice, engine=engines[kind])


def _on_threads(bundle: Bundle, threads: int | None) -> "ScanClassifier":
    import torch  # noqa: PLC0415 (see above)

    if threads is not None:
        torch.set_num_threads(threads)
    return bundle.classifier()


def offered(
    agreements: Sequence[Mapping[str, Mapping[str, Any]]], machine: Machine, precision: str | None
) -> tuple[list[EngineKind], dict[str, str]]:
    """The engines a bundle's agreements allow on a machine, preferred first; and why the others are not, by name.

    `agreements` are `Bundle.agreements`.
    """
    offers: list[EngineKind] = []
    refused: dict[str, str] = {}
    for kind in machine.kinds():
        if precision not in {None, kind.precision}:
            continue
        why = _refusal(kind, agreement_of(kind, agreements, machine), machine)
        if why:
            refused[kind.name] = why
        elif kind.engine == "openvino" or machine.has_gpu or not offers:  # torch on a CPU: see Machine.kinds
            offers.append(kind)
    return offers, refused


def fastest(kinds: Sequence[EngineKind], films_per_second: Mapping[str, float]) -> tuple[EngineKind, str]:
    """The first of engines, in order of preference, that no other is clearly faster than; and why."""
    best = max(films_per_second[kind.name] for kind in kinds)
    chosen = next(kind for kind in kinds if films_per_second[kind.name] * WORTH_CHANGING >= best)
    if len(kinds) == 1:
        return chosen, "the only engine allowed here"
    clause = "the fastest" if films_per_second[chosen.name] == best else "preferred, about as fast as the fastest"
    return chosen, f"{clause} of {len(kinds)} allowed here"


def probe_films(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Made-up films uint8 [count, size, size], always the same: soft blots under grain, each film another."""
    rng = np.random.default_rng(0)
    blots = rng.integers(0, 200, (count, 8, 8))
    at = np.arange(size) * 8 // size
    return (blots[:, at][:, :, at] + rng.integers(0, 56, (count, size, size))).astype(np.uint8)


def agreement_of(
    kind: EngineKind, agreements: Sequence[Mapping[str, Mapping[str, Any]]], machine: Machine
) -> Mapping[str, Any] | None:
    """What was found of an engine: last in this machine's version of it, else last in any; None if nothing was."""
    found = [measured[kind.name] for measured in agreements if kind.name in measured]
    here = [agreement for agreement in found if agreement.get("version") == machine.version(kind)]
    return next(reversed(here or found), None)


def _refusal(kind: EngineKind, agreement: Mapping[str, Any] | None, machine: Machine) -> str | None:
    """Why an engine may not run a bundle with this entry of agreements; None when it may."""
    if (kind.engine, kind.precision) == ("torch-eager", "fp32"):
        return None
    if agreement is None:
        return "never compared with float32 torch on this model's validation films"
    if not agreement["allowed"]:
        return "; ".join(agreement["reasons"])
    if kind.precision == "fp32":
        return None if agreement["max_dp"] <= ROUNDING else f"moves probabilities by {agreement['max_dp']:.2g}"
    if agreement["version"] != machine.version(kind):
        return f"compared with float32 in {agreement['version']}, here is {machine.version(kind)}"
    return None


def _films_per_second(engines: Mapping[EngineKind, Engine], films: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The rate of each engine, from its quickest of several turns taken in rounds, so that all see the same machine."""
    for engine in engines.values():
        engine(films)
    quickest = dict.fromkeys(engines, float("inf"))
    until = time.perf_counter() + PROBE_SECONDS
    for _ in range(PROBE_ROUNDS):
        for kind, engine in engines.items():
            started = time.perf_counter()
            engine(films)
            quickest[kind] = min(quickest[kind], time.perf_counter() - started)
        if time.perf_counter() >= until:
            break
    return {kind.name: len(films) / seconds for kind, seconds in quickest.items()}


def _listed(refused: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in refused.items()) or "none exists"
