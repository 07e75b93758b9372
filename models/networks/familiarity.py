"""How far a film lies from the training films in what the network sees of them: the ood_score.

Training films are described by one Gaussian, as in Lee et al. 2018, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples and Adversarial Attacks", sec. 2, with one mean for all classes, over the mean and deviation
of each channel of the network's last stages (`models.networks.zoo.described`). The principal axes of the training films
(at most 256) are whitened, their variances shrunk as in Ledoit & Wolf 2004, "A well-conditioned estimator for
large-dimensional covariance matrices"; what lies off all of them counts as one coordinate more (the distance from
feature space of Moghaddam & Pentland 1997, sec. 3.1). The distance is the root mean square of these coordinates, scaled
so that over the training films it is 1, whatever the network.

A film beyond `limit` is unfamiliar: of another kind than the films the model learned from, and a probability for it
means nothing. The limit is set by films of patients the network did not learn from, so that of such films at most 2 %
are refused, in 9 of 10 cases (Wilks 1941, see `models/statistics/operating_points.py`).
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from models.gate.checks import REFUSED

AXES: Final = 256
FILMS_PER_AXIS: Final = 4
"""Fewer films than this for an axis do not tell its variance."""
NEGLIGIBLE: Final = 1e-9
"""Share of the features' variance below which there is nothing left to scale by."""
CERTAINTY: Final = 0.9
"""How often no more are."""
MARGIN: Final = 1.5
"""With too few films to know (under 114), the limit is this many times the farthest of them."""


class Familiarity(nn.Module):
    """Features float32 [N, D] -> distance float32 [N], 0 or more."""

    mean: Tensor
    axes: Tensor
    scale: Tensor
    rest_scale: Tensor
    limit: Tensor

    def __init__(
        self, *, mean: Tensor, axes: Tensor, scale: Tensor, rest_scale: Tensor, limit: Tensor | None = None
    ) -> None:
        """`mean` [D]; orthonormal `axes` [K, D]; what coordinates on them [K] and off them [] are multiplied by.

        `limit` [] is the distance beyond which a film is refused; None refuses none.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)
        self.register_buffer("scale", scale)
        self.register_buffer("rest_scale", rest_scale)
        self.register_buffer("limit", torch.tensor(torch.inf) if limit is None else limit)

    def forward(self, features: Tensor) -> Tensor:
        """The distance of each film."""
        centred = features - self.mean
        along = centred @ self.axes.T
        rest = (centred - along @ self.axes) * self.rest_scale
        return ((along * self.scale).square().sum(dim=1) + rest.square().sum(dim=1)).sqrt()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Familiarity":
        """From what `state_dict` gave. Raises `KeyError` for a name missing, `TypeError` for one too many."""
        return cls(**{name: state[name] for name in {"mean", "axes", "scale", "rest_scale"} | set(state)})


# tensors made in inference mode could not be exported later, and callers are often in it
@torch.inference_mode(mode=False)
def fit_familiarity(features: Tensor, held_out: Tensor | None = None) -> Familiarity | None:
    """The Gaussian of training films by their features [N, D]; None when these do not vary.

    Its limit is that of films the network did not learn from, `held_out` [M, D]; without these it refuses none.
    """
    features = features.detach().to("cpu", torch.float64, copy=True)
    films, width = features.shape
    mean = features.mean(dim=0)
    centred = features - mean
    total = float(centred.square().sum() / films)
    if not total > NEGLIGIBLE * max(1.0, float(mean.square().sum())):
        return None
    kept = max(1, min(AXES, width, films // FILMS_PER_AXIS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Halko et al. 2011: a few of the axes, in a small part of the time of all of them
        _, _, right = torch.svd_lowrank(centred, q=min(kept + 8, width, films), niter=4)
    axes = right[:, :kept].T
    along = centred @ axes.T
    variance = along.square().mean(dim=0)
    shrunk = _shrunk(along, variance)
    rest = float((centred - along @ axes).square().sum() / films)
    has_rest = rest > NEGLIGIBLE * total
    # the squares that the training films have on average: an axis shrunk away counts for less than one
    coordinates = float((variance / shrunk).sum()) + has_rest
    familiarity = Familiarity(
        mean=mean.float(),
        axes=axes.float().contiguous(),
        scale=(1 / (shrunk * coordinates).sqrt()).float(),
        rest_scale=torch.tensor((rest * coordinates) ** -0.5 if has_rest else 0.0),
    )
    if held_out is not None and len(held_out):
        familiarity.limit = limit_of(familiarity(held_out.to("cpu", torch.float32)))
    return familiarity


def limit_of(distances: Tensor) -> Tensor:
    """The limit [] for distances [M] of films that the network did not learn from."""
    from scipy.stats import binom  # noqa: PLC0415 (only where a model is made)

    films = len(distances)
    farthest = distances.sort(descending=True).values
    # so few beyond the limit are seen in one of ten cases if a share of REFUSED lies there
    beyond = int(binom.ppf(1 - CERTAINTY, films, REFUSED)) - 1
    return farthest[beyond] if beyond >= 0 else MARGIN * farthest[0]


def _shrunk(along: Tensor, variance: Tensor) -> Tensor:
    """Variances [K] of principal coordinates [N, K], drawn towards their mean (Ledoit & Wolf 2004, sec. 3.3)."""
    films = len(along)
    average = variance.mean()
    spread = (variance - average).square().sum()
    # the mean squared distance of one film's outer product from the covariance, which is diagonal here
    error = (along.square().sum(dim=1).square().mean() - variance.square().sum()) / films
    weight = float((error / spread).clamp(0, 1)) if float(spread) > 0 else 1.0
    # a floor: an axis along which no training film moves must not become an infinite distance
    return ((1 - weight) * variance + weight * average).clamp_min(NEGLIGIBLE * float(average) * len(variance))
