"""Transfer with a frozen backbone: its features of a data set are computed once, and kept for every head.

Measured for MobileNetV2 0.35 and 5,232 films of 224 pixels: 13 to 15 s of CPU time for the features, then 0.2 to 0.4 s
for each head of `rayscan train --recipe mobilenet-frozen` (`tuning/training/heads.py`), with the network and its
weights read anew for each.

FOLDER/features-<key>.safetensors    `values` float32 [N, D] and `scan_ids` uint8 (one a line), in the same order

The key stands for everything that determines the features: data set, split, backbone, its weights and the
preprocessing. Labels come from the caller, who may use other classes, or only some of the films. Features are kept in
float32: 27 MB for 5,200 films with 1,280 each. Only the `KEPT` most recently used files stay in a folder; all of them
may be removed at any time.
"""

import copy
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
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
from models.networks.classifier import in_batches
from models.networks.preprocess import Preprocess
from models.networks.weights import Loaded, hub_weights, load_pretrained, read_weights, weights_hash
from models.networks.zoo import build, features, has_features, layer_groups
from models.spec import ModelSpec, Preprocessing
from pipelines.ingest.dataset import check_fits, load_films, read_dataset_info
from pipelines.progress import progress
from pipelines.storage import open_store, read_object
from tuning.toml_files import HUB

log = logging.getLogger("rayscan")

CPU: Final = torch.device("cpu")
BATCH: Final = 16
KEPT: Final = 20
"""Files of features that stay in a folder: enough for five data sets or backbones with two to three splits each."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of N films: the input of a network's classifier."""

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
    """[N, D]; a view of the file's memory, shared by all processes that read it."""
    scan_ids: npt.NDArray[np.str_]
    """[N]"""


def pretrained_network(spec: ModelSpec, weights: str, *, scale: str | None = None) -> tuple[nn.Module, Loaded]:
    """The network of a specification with the weights at a URI or local path, in evaluation mode.

    `imagenet` takes those that timm publishes; `scale` is that of `models.networks.weights.load_pretrained`. Raises
    what `read_weights`, `hub_weights` and `load_pretrained` raise, and `NotFoundError` if there is no file.
    """
    network = build(spec)
    tensors = hub_weights(spec.name) if weights == HUB else read_weights(read_object(weights), weights)
    return network.eval(), load_pretrained(network, spec, tensors, name=weights, scale=scale)


def dataset_features(
    dataset: str,
    split: str,
    spec: ModelSpec,
    network: nn.Module,
    folder: str,
    *,
    threads: int | None = None,
    device: torch.device = CPU,
) -> SplitFeatures:
    """The features of a split of a data set, computed unless they are kept in the local folder.

    `threads` and `device` are those of `compute_features`. Raises `InputError` for a network without features, for a
    data set whose films do not fit the specification, and for a folder that is not local.
    """
    info = read_dataset_info(dataset)
    check_fits(spec.preprocessing, info, dataset)
    path = open_store(folder).path / f"features-{_key(info.fingerprint, split, spec, network)}.safetensors"
    if path.exists():
        log.debug("features of %s, %s: kept in %s", dataset, split, path)
        path.touch()
    else:
        films = load_films(dataset, split)
        values = compute_features(network, spec.preprocessing, films.pixels, threads=threads, device=device)
        names = np.frombuffer("\n".join(films.scan_ids.tolist()).encode(), dtype=np.uint8)
        _write(path, {"values": torch.from_numpy(values), "scan_ids": torch.tensor(names)})
        _remove_oldest(path.parent)
    return read_features(path)


def features_of(films: Films, splits: Sequence[SplitFeatures]) -> Features:
    """The features of these films, in their order and with their labels, from whichever of the splits holds them.

    Raises `InputError` for a film that is in none of the splits.
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
    device: torch.device = CPU,
) -> npt.NDArray[np.float32]:
    """The features [N, D] of films uint8 [N, H, W], preprocessed as for scoring, in float32.

    On a GPU a copy of the network computes them; they differ from a CPU's by rounding, and are kept under the same key.
    Each of `threads` (None: as many as torch has) computes whole batches by itself. Torch's own threads, which share
    each batch, were refused: they wait for each other after every operation, and beside other work on the machine they
    took ten times the CPU time. Raises `InputError` for a network without features, and for no films.
    """
    keep_memory()
    preprocess = Preprocess(preprocessing)
    network = network.eval().to(memory_format=torch.channels_last)
    if len(pixels) == 0:
        raise InputError("there are no films to compute features of")
    with torch.inference_mode():
        if not has_features(network, preprocess(torch.tensor(pixels[:2]))):
            raise InputError("this network has no features before its classifier; choose another backbone")

    if device.type != "cpu":
        return on_device(network, preprocess, pixels, device)

    def compute(start: int) -> Tensor:
        with torch.inference_mode():  # the mode holds for one thread only
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
    values: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return values


def on_device(
    network: nn.Module, preprocess: Preprocess, pixels: npt.NDArray[np.uint8], device: torch.device
) -> npt.NDArray[np.float32]:
    """`compute_features` in whole batches on a device."""
    there = copy.deepcopy(network).to(device)

    def compute(films: Tensor) -> Tensor:
        return features(there, preprocess(films).to(memory_format=torch.channels_last)).flatten(1).float()

    values: npt.NDArray[np.float32] = in_batches(compute, pixels, device).numpy()
    return values


def read_features(path: Path) -> SplitFeatures:
    """Features as a view of the file's memory. Raises `InputError` if the file does not hold features."""
    try:
        tensors = safetensors.torch.load_file(path)
        names = tensors["scan_ids"].numpy().tobytes().decode()
        return SplitFeatures(values=tensors["values"].numpy(), scan_ids=np.array(names.split("\n")))
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path} is not a file of features; remove it, and it is computed again") from error


def _key(fingerprint: str, split: str, spec: ModelSpec, network: nn.Module) -> str:
    """32 hex digits that stand for everything that determines the features; the classifier does not."""
    last = {id(parameter) for group in layer_groups(network)[-1:] for parameter in group}
    frozen = {name: value for name, value in network.state_dict(keep_vars=True).items() if id(value) not in last}
    identity = {
        "dataset": fingerprint,
        "split": split,
        "backbone": [spec.name, dict(spec.parameters)],
        "weights": weights_hash(frozen),
        "preprocessing": spec.preprocessing.to_json(),
    }
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the file whole or not at all: another process may be reading or writing the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        safetensors.torch.save_file(tensors, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    """Keep only the most recently used files; a process that has read a removed one keeps its features."""
    newest = sorted(folder.glob("features-*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[KEPT:]:
        path.unlink(missing_ok=True)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One torch thread for this computation only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
