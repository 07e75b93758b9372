"""Where a network that does not start at random starts from: pretrained weights, and a classifier fitted to them."""

import logging
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.films import Films
from models.networks.preprocess import Preprocess
from models.networks.weights import Loaded, unfold_batch_norm
from models.spec import ModelSpec
from tuning.training.features import Features, dataset_features, features_of, pretrained_network
from tuning.training.head_settings import HeadSettings
from tuning.training.heads import FittedHead, fit_head, install_head

log = logging.getLogger("rayscan")

UNFOLD_FILMS: Final = 64
DROPOUT: Final = ("drop_rate", "drop_path_rate", "dropout")


def seeded_network(spec: ModelSpec, weights: str, seed: int) -> tuple[nn.Module, Loaded]:
    """A network with pretrained weights; what they lack, a classifier, starts from the seed.

    Raises what `tuning.training.features.pretrained_network` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pretrained_network(spec, weights)


def pretrained_start(
    spec: ModelSpec,
    weights: str,
    *,
    head: HeadSettings | None,
    seed: int,
    dataset: str,
    films: Films,
    val: Films,
    folder: str,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """The state a training starts from, with a classifier fitted to frozen features where `head` says how.

    Features of the data set at the URI `dataset`, which the films are of, are computed once and kept in the local
    `folder`. Raises what `seeded_network` and `fit_installed_head` raise.
    """
    network, loaded = seeded_network(spec, weights, seed)
    network.to(memory_format=torch.channels_last)  # as the features are computed, whether or not they are kept already
    if head is not None:
        fitted, _ = fit_installed_head(
            network, spec, head, dataset=dataset, films=films, val=val, folder=folder, threads=threads
        )
        log.info("classifier on frozen features: validation AUC %.4f; now the rest learns", fitted.val_auc)
    # a classifier fitted in evaluation mode must fit in training mode, too. After it: features are kept by the weights,
    # and these would be others, for the same features
    if loaded.folded or head is not None:
        some = torch.tensor(films.pixels[:: max(1, len(films) // UNFOLD_FILMS)][:UNFOLD_FILMS])
        unfold_batch_norm(network, Preprocess(spec.preprocessing)(some))
    state: dict[str, Tensor] = network.state_dict()
    return state


def fit_installed_head(
    network: nn.Module,
    spec: ModelSpec,
    head: HeadSettings,
    *,
    dataset: str,
    films: Films,
    val: Films,
    folder: str,
    threads: int | None = None,
) -> tuple[FittedHead, npt.NDArray[np.float32]]:
    """Fit a classifier to the network's features and put it in; features are computed once and kept.

    Beside it the logits [N, C] of the films it was fitted to. Raises what the functions of `tuning.training.features`
    raise.
    """
    of_train, of_val = frozen_features(
        network, spec, dataset=dataset, films=films, val=val, folder=folder, threads=threads
    )
    fitted = fit_head(of_train, of_val, head, classes=len(spec.classes))
    install_head(network, fitted.head)
    return fitted, fitted.head.logits(of_train.values)


def frozen_features(
    network: nn.Module,
    spec: ModelSpec,
    *,
    dataset: str,
    films: Films,
    val: Films,
    folder: str,
    threads: int | None = None,
) -> tuple[Features, Features]:
    """What the network's classifier sees of both sides' films, of which only labels and scan ids are looked at."""
    # dropout acts in training only: networks that differ in nothing else share their features
    kept = {name: value for name, value in spec.parameters.items() if name not in DROPOUT}
    bare = replace(spec, parameters=kept)
    splits = [dataset_features(dataset, split, bare, network, folder, threads=threads) for split in ("train", "val")]
    return features_of(films, splits), features_of(val, splits)
