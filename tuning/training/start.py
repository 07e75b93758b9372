"""Pretrained networks: the state they start training from, with a classifier fitted to their features."""

import logging
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.preprocess import Preprocess
from models.networks.weights import Loaded, unfold_batch_norm
from models.spec import ModelSpec
from tuning.training.features import CPU, Features, dataset_features, features_of, pretrained_network
from tuning.training.films import TrainingFilms
from tuning.training.head_settings import HeadSettings
from tuning.training.heads import FittedHead, fit_head, install_head

log = logging.getLogger("rayscan")

UNFOLD_FILMS: Final = 64
DROPOUT: Final = ("drop_rate", "drop_path_rate", "dropout")


def seeded_network(spec: ModelSpec, weights: str, seed: int) -> tuple[nn.Module, Loaded]:
    """A network with pretrained weights; a classifier that they lack starts from the seed.

    Raises what `tuning.training.features.pretrained_network` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pretrained_network(spec, weights)


def pretrained_start(
    spec: ModelSpec,
    weights: str,
    films: TrainingFilms,
    *,
    head: HeadSettings | None,
    seed: int,
    folder: str,
    threads: int | None = None,
    device: torch.device = CPU,
) -> dict[str, Tensor]:
    """The state a training starts from; with `head`, its classifier is first fitted to frozen features.

    Features are computed once, on `device`, and kept in the local `folder`. Raises what `seeded_network` and
    `fit_installed_head` raise.
    """
    network, loaded = seeded_network(spec, weights, seed)
    network.to(memory_format=torch.channels_last)  # as features are computed, whether or not they are kept already
    if head is not None:
        fitted, _ = fit_installed_head(network, spec, head, films, folder=folder, threads=threads, device=device)
        log.info("classifier on frozen features: validation AUC %.4f; now the rest learns", fitted.val_auc)
    # a classifier fitted in evaluation mode must also fit in training mode. Only now: kept features are named by the
    # weights, and unfolding changes the weights but not the features
    if loaded.folded or head is not None:
        pixels = films.train.pixels
        sample = torch.tensor(pixels[:: max(1, len(pixels) // UNFOLD_FILMS)][:UNFOLD_FILMS])
        unfold_batch_norm(network, Preprocess(spec.preprocessing)(sample))
    state: dict[str, Tensor] = network.state_dict()
    return state


def fit_installed_head(
    network: nn.Module,
    spec: ModelSpec,
    head: HeadSettings,
    films: TrainingFilms,
    *,
    folder: str,
    threads: int | None = None,
    device: torch.device = CPU,
) -> tuple[FittedHead, npt.NDArray[np.float32]]:
    """Fit a classifier to the network's features and install it.

    Also returns the logits [N, C] of the training films. Raises what `frozen_features`, `fit_head` and `install_head`
    raise.
    """
    of_train, of_val = frozen_features(network, spec, films, folder=folder, threads=threads, device=device)
    fitted = fit_head(of_train, of_val, head, classes=len(spec.classes))
    install_head(network, fitted.head)
    return fitted, fitted.head.logits(of_train.values)


def frozen_features(
    network: nn.Module,
    spec: ModelSpec,
    films: TrainingFilms,
    *,
    folder: str,
    threads: int | None = None,
    device: torch.device = CPU,
) -> tuple[Features, Features]:
    """The features of the training and of the validation films, computed once and kept in the local `folder`.

    Uses only the labels and scan ids of `films`. Raises what `dataset_features` and `features_of` raise.
    """
    # dropout acts in training only, so networks that differ only in it share their features
    kept = {name: value for name, value in spec.parameters.items() if name not in DROPOUT}
    bare = replace(spec, parameters=kept)
    splits = [
        dataset_features(films.uri, split, bare, network, folder, threads=threads, device=device)
        for split in ("train", "val")
    ]
    return features_of(films.train, splits), features_of(films.val, splits)
