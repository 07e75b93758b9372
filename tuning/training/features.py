"""Transfer with a frozen backbone: the features of a data set once, then one head after the other in no time.

Measured for MobileNetV2 0.35 and 5,232 films of 224 pixels: 13 to 15 s of CPU time for the features, then 0.2 to 0.4 s
for each head of `rayscan train --recipe mobilenet-frozen`, the network and its weights read anew for each. So a grid of
heads costs next to nothing, and a head of one layer goes back into the network, which then is a model like any other.

FOLDER/features-<key>.safetensors    `values` float32 [N, D] and `scan_ids` uint8 (one a line), in the order of these

The key stands for all that determines them: data set, split, backbone, its weights and the preprocessing. Labels are
the caller's, who may tell other classes apart, or take some of the films only. They are kept in float32, 27 MB for
5,200 films of 1,280. Of a folder's files the `KEPT` used last stay; all of them may be removed at any time.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models.engines.allocator import keep_memory
from models.errors import InputError
from models.films import Films
from models.networks.preprocess import Preprocess
from models.networks.weights import Loaded, hub_weights, load_pretrained, read_weights, weights_hash
from models.networks.zoo import build, features, has_features, layer_groups
from models.spec import ModelSpec, Preprocessing
from models.statistics.metrics import auc
from pipelines.ingest.dataset import check_fits, load_films, read_dataset_info
from pipelines.progress import progress
from pipelines.storage import open_store, read_object
from tuning.toml_files import HUB
from tuning.training.head_settings import HeadSettings
from tuning.training.losses import cross_entropy

log = logging.getLogger("rayscan")

BATCH: Final = 16
AXES: Final = 128
"""Principal axes that a hidden layer sees of wider features: a third to two thirds of the time, and an AUC that was
lower by 0.0010 at most, of 0.996."""
KEPT: Final = 20
"""Files of features that stay in a folder: five data sets and backbones, with two to three splits each."""
CONSTANT: Final = 1e-6
"""Deviation, in units of a feature's largest value, up to which it tells nothing."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the classifier of a network sees of N films."""

    values: npt.NDArray[np.float32]
    """[N, D]."""
    labels: npt.NDArray[np.int64]
    """Class index [N]."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """The features of all N films of a split."""

    values: npt.NDArray[np.float32]
    """[N, D]; the file's own memory, which is shared by all processes that read it."""
    scan_ids: npt.NDArray[np.str_]
    """[N]"""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Linear layers on features as the network gives them, with ReLU between."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Weight float32 [outputs, inputs] and bias [outputs] of each."""

    @torch.inference_mode()
    def logits(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[N, D] -> [N, C]."""
        found: npt.NDArray[np.float32] = _forward(torch.from_numpy(values), self.layers).numpy()
        return found


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A trained head and what it came to."""

    head: Head
    settings: HeadSettings
    val_auc: float
    val_logits: npt.NDArray[np.float32]
    """[N, C], in the order of the validation films."""
    seconds: float


def pretrained_network(spec: ModelSpec, weights: str, *, scale: str | None = None) -> tuple[nn.Module, Loaded]:
    """The network of a specification with the weights at a URI or local path, in evaluation mode.

    `imagenet` takes those that timm publishes; `scale` is that of `models.networks.weights.load_pretrained`. Raises
    what `read_weights`, `hub_weights` and `load_pretrained` raise, and `NotFoundError` where there is no file.
    """
    network = build(spec)
    found = hub_weights(spec.name) if weights == HUB else read_weights(read_object(weights), weights)
    return network.eval(), load_pretrained(network, spec, found, name=weights, scale=scale)


def dataset_features(
    dataset: str, split: str, spec: ModelSpec, network: nn.Module, folder: str, *, threads: int | None = None
) -> SplitFeatures:
    """The features of a split of a data set, computed unless the local folder has them.

    `threads` is that of `compute_features`. Raises `InputError` for a network without features, for a
    data set of other films than the specification's, and for a folder that is not local.
    """
    info = read_dataset_info(dataset)
    check_fits(spec.preprocessing, info, dataset)
    path = open_store(folder).path / f"features-{_key(info.fingerprint, split, spec, network)}.safetensors"
    if path.exists():
        log.debug("features of %s, %s: %s has them", dataset, split, path)
        path.touch()
    else:
        films = load_films(dataset, split)
        values = compute_features(network, spec.preprocessing, films.pixels, threads=threads)
        names = np.frombuffer("\n".join(films.scan_ids.tolist()).encode(), dtype=np.uint8)
        _write(path, {"values": torch.from_numpy(values), "scan_ids": torch.tensor(names)})
        _remove_oldest(path.parent)
    return read_features(path)


def features_of(films: Films, splits: Sequence[SplitFeatures]) -> Features:
    """The features of these films, in their order and with their labels, wherever among the splits they stand.

    Raises `InputError` for a film that none of the splits has.
    """
    scan_ids = np.concatenate([split.scan_ids for split in splits])
    order = np.argsort(scan_ids)
    place = order[np.searchsorted(scan_ids, films.scan_ids, sorter=order).clip(max=len(order) - 1)]
    if not np.array_equal(scan_ids[place], films.scan_ids):
        raise InputError("the kept features are of other films; empty the folder `features` of the cache and try again")
    return Features(values=np.concatenate([split.values for split in splits])[place], labels=films.labels)


def compute_features(
    network: nn.Module,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    *,
    threads: int | None = None,
) -> npt.NDArray[np.float32]:
    """What the classifier sees, [N, D], of films uint8 [N, H, W], through the preprocessing that scoring has.

    Each of `threads` (None: as many as torch has) takes a batch at a time for itself. Batches shared by torch's own
    threads were refused: they wait for each other after every operation, and where other work runs on the machine they
    took ten times the CPU time. Raises `InputError` for a network that has no such features, or no films.
    """
    keep_memory()
    preprocess = Preprocess(preprocessing)
    network = network.eval().to(memory_format=torch.channels_last)
    if len(pixels) == 0:
        raise InputError("there are no films to compute features of")
    with torch.inference_mode():
        if not has_features(network, preprocess(torch.tensor(pixels[:2]))):
            raise InputError("this network has no features before its classifier; choose another backbone")

    def compute(start: int) -> Tensor:
        with torch.inference_mode():  # it is of this thread only
            inputs = preprocess(torch.tensor(pixels[start : start + BATCH])).to(memory_format=torch.channels_last)
            return features(network, inputs).flatten(1).float()

    parts: list[Tensor] = []
    workers = threads or torch.get_num_threads()
    with (
        _one_torch_thread(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        progress("features", len(pixels), "films") as advance,
    ):
        for part in pool.map(compute, range(0, len(pixels), BATCH)):
            parts.append(part)
            advance(len(part))
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def read_features(path: Path) -> SplitFeatures:
    """Features as a view of the file's memory. Raises `InputError` for a file that is none."""
    try:
        tensors = safetensors.torch.load_file(path)
        names = tensors["scan_ids"].numpy().tobytes().decode()
        return SplitFeatures(values=tensors["values"].numpy(), scan_ids=np.array(names.split("\n")))
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path} is not a file of features; remove it, and it is computed again") from error


# what is made in inference mode has no gradient, and callers are often in it
@torch.inference_mode(mode=False)
def fit_head(train: Features, val: Features, settings: HeadSettings, *, classes: int = 2) -> FittedHead:
    """Train a head by L-BFGS on all films at once; the same arguments give the same head.

    Raises `InputError` unless both sides have features of one width, of every class.
    """
    started = time.perf_counter()
    if train.values.shape[1] != val.values.shape[1]:
        raise InputError(
            f"features of {train.values.shape[1]} and of {val.values.shape[1]} numbers are not of one network;"
            " compute both with the same one"
        )
    for side, some in (("training", train), ("validation", val)):
        missing = sorted(set(range(classes)) - set(some.labels.tolist()))
        if missing:
            raise InputError(f"there are no {side} films of class {missing[0]}; prepare a larger dataset")
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    mean, slope = _standard(values)
    standard = (values - mean) * slope
    axes = _axes(standard, settings)
    layers = _minimise(standard if axes is None else standard @ axes, labels, settings, classes)
    first, bias = layers[0]
    first = first if axes is None else first @ axes.T
    # of the features as they are: the standardisation becomes part of the first layer
    layers[0] = (first * slope, bias - first @ (mean * slope))
    head = Head(layers=tuple(layers))
    logits = head.logits(val.values)
    return FittedHead(
        head=head,
        settings=settings,
        val_auc=auc(val.labels, logits[:, 1] - logits[:, 0]),
        val_logits=logits,
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def install_head(network: nn.Module, head: Head) -> None:
    """Put a head of one layer in the place of the network's classifier, in place.

    Raises `InputError` for a head with a hidden layer, which the classifier has no room for, or of another shape.
    """
    if len(head.layers) != 1:
        raise InputError("a head with a hidden layer does not fit into the classifier of a network; choose hidden=0")
    ((weight, bias),) = head.layers
    classifier = layer_groups(network)[-1]
    if len(classifier) != 2 or classifier[0].flatten(1).shape != weight.shape:
        raise InputError(
            f"this head of {list(weight.shape)} does not fit the network's classifier"
            f" {[list(part.shape) for part in classifier]}; train one on the network's own features"
        )
    classifier[0].copy_(weight.view_as(classifier[0]))
    classifier[1].copy_(bias)


def _key(fingerprint: str, split: str, spec: ModelSpec, network: nn.Module) -> str:
    """32 hex digits that stand for all that determines features; the classifier does not."""
    last = {id(parameter) for group in layer_groups(network)[-1:] for parameter in group}
    frozen = {name: value for name, value in network.state_dict(keep_vars=True).items() if id(value) not in last}
    identity = {
        "dataset": fingerprint,
        "split": split,
        "backbone": [spec.name, dict(spec.parameters)],
        "weights": weights_hash(frozen),
        "preprocessing": asdict(spec.preprocessing),
    }
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all: another process may be reading or writing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        safetensors.torch.save_file(tensors, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    """All but the files used last; who reads one of the others keeps what it has read."""
    found = sorted(folder.glob("features-*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[KEPT:]:
        path.unlink(missing_ok=True)


def _standard(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] of features [N, D], and what makes their deviation 1; 0 for those that are constant."""
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    deviation = variance.sqrt()
    tells = deviation > CONSTANT * values.abs().amax(dim=0)
    return mean, torch.where(tells, 1 / deviation, 0.0)


def _axes(values: Tensor, settings: HeadSettings) -> Tensor | None:
    """The first principal axes [D, AXES] of standardised features; None where the head is to see them all."""
    if not settings.hidden or values.shape[1] <= AXES:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        # Halko et al. 2011: the axes that matter, in a small part of the time of all of them
        _, _, right = torch.svd_lowrank(values, q=min(AXES + 8, *values.shape), niter=2)
    return right[:, :AXES]


def _minimise(values: Tensor, labels: Tensor, settings: HeadSettings, classes: int) -> list[tuple[Tensor, Tensor]]:
    """The layers of the head that are best for standardised features [N, D]."""
    widths = [values.shape[1], *([settings.hidden] if settings.hidden else []), classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        weights = [
            torch.randn(outputs, inputs) * (2 / inputs) ** 0.5 if settings.hidden else torch.zeros(outputs, inputs)
            for inputs, outputs in pairwise(widths)
        ]
    layers = [(weight.requires_grad_(), torch.zeros(len(weight), requires_grad=True)) for weight in weights]
    optimiser = torch.optim.LBFGS(
        [parameter for layer in layers for parameter in layer],
        max_iter=settings.steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = sum(weight.square().sum() for weight, _ in layers)
        total = cross_entropy(_forward(values, layers), labels) + settings.l2 / 2 * penalty
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def _forward(values: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for number, (weight, bias) in enumerate(layers):
        values = nn.functional.linear(torch.relu(values) if number else values, weight, bias)
    return values


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One torch thread for this computation only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
