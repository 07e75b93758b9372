"""The whole model as one module: grey levels in, calibrated class probabilities and the feature distance out."""

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.familiarity import Familiarity
from models.networks.float32 import exact_float32
from models.networks.preprocess import Preprocess
from models.networks.zoo import build, classify, described, describing
from models.spec import ModelSpec
from models.statistics.calibration import UNCALIBRATED, Calibration

BATCH: Final = 64
"""Films that `in_batches` computes at a time."""


class ScanClassifier(nn.Module):
    """uint8 [N, H, W] -> float32 [N, C] probabilities that sum to 1. What training, engines and exports share."""

    def __init__(
        self,
        preprocess: Preprocess,
        network: nn.Module,
        calibration: Calibration = UNCALIBRATED,
        familiarity: Familiarity | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.familiarity = familiarity
        self.precision = torch.float32
        self.calibrate = Calibrate(calibration)

    def to_precision(self, precision: torch.dtype) -> "ScanClassifier":
        """Run the network in bfloat16 or float16 from now on; what is before and after it stays in float32."""
        self.network.to(precision)
        self.precision = precision
        return self

    def logits(self, pixels: Tensor) -> Tensor:
        """Uncalibrated logits float32 [N, C]."""
        logits: Tensor = self.network(self._input(pixels))
        return logits.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Calibrated probabilities."""
        return torch.softmax(self.calibrate(self.logits(pixels)), dim=1)

    def description(self, pixels: Tensor) -> Tensor:
        """What the network saw of each film, float32 [N, D]; for networks that `zoo.has_features`."""
        return described(describing(self.network), self._input(pixels))[1]

    def infer(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities, and the distance from the training films float32 [N], NaN when not fitted."""
        if self.familiarity is None:
            probabilities = self(pixels)
            return probabilities, torch.full_like(probabilities[:, 0], torch.nan)
        computed, seen = described(self.network, self._input(pixels))
        probabilities = torch.softmax(self.calibrate(classify(self.network, computed).float()), dim=1)
        return probabilities, self.familiarity(seen)

    def _input(self, pixels: Tensor) -> Tensor:
        prepared: Tensor = self.preprocess(pixels)
        return prepared.to(self.precision)


class Calibrate(nn.Module):
    """Logits float32 [N, C] -> calibrated logits: what `Calibration.probabilities` does before the softmax."""

    temperature: Tensor
    bias: Tensor
    starts: Tensor
    widths: Tensor
    slopes: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.has_curve, self.moves = bool(calibration.curve), bool(calibration.curve or calibration.bias)
        pieces = list(pairwise(calibration.curve))
        ends = [calibration.curve[0], calibration.curve[-1]] if calibration.curve else [(0.0, 0.0)] * 2
        (self.first, self.lowest), (self.last, _) = ends
        self.register_buffer("temperature", torch.tensor(float(calibration.temperature)))
        self.register_buffer("bias", torch.tensor(float(calibration.bias)))
        self.register_buffer("starts", torch.tensor([x for (x, _), _ in pieces]))
        self.register_buffer("widths", torch.tensor([to_x - x for (x, _), (to_x, _) in pieces]))
        self.register_buffer("slopes", torch.tensor([(to_y - y) / (to_x - x) for (x, y), (to_x, to_y) in pieces]))

    def forward(self, logits: Tensor) -> Tensor:
        """The same where there is only a temperature; else the first class is moved so that the odds are as wanted."""
        scaled = logits / self.temperature
        if not self.moves:
            return scaled
        odds = torch.logsumexp(scaled[:, 1:], dim=1) - scaled[:, 0]
        along = torch.minimum(torch.relu(odds[:, None] - self.starts), self.widths)
        beyond = -torch.relu(self.first - odds) + torch.relu(odds - self.last)
        mapped = self.lowest + (along * self.slopes).sum(dim=1) + beyond if self.has_curve else odds
        moved = scaled[:, :1] + (odds - mapped - self.bias)[:, None]
        return torch.cat([moved, scaled[:, 1:]], dim=1)


class InferenceGraph(nn.Module):
    """`ScanClassifier.infer` as a module of its own, for what compiles or exports modules."""

    def __init__(self, classifier: ScanClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, H, W] -> probabilities [N, C], distance [N]."""
        return self.classifier.infer(pixels)


def trained_classifier(
    spec: ModelSpec, state_dict: Mapping[str, Tensor], calibration: Calibration = UNCALIBRATED
) -> ScanClassifier:
    """The network of a specification with its trained weights, in evaluation mode, as scoring runs it."""
    network = build(spec)
    network.load_state_dict(dict(state_dict))
    return ScanClassifier(Preprocess(spec.preprocessing), network, calibration).eval()


def copy_on(classifier: ScanClassifier, device: torch.device) -> ScanClassifier:
    """A copy on a device, with its weights laid out as convolutions are fastest."""
    return copy.deepcopy(classifier).to(device).to(memory_format=torch.channels_last)


@torch.inference_mode()
def in_batches(
    compute: Callable[[Tensor], Tensor], pixels: npt.NDArray[np.uint8], device: torch.device | str = "cpu"
) -> Tensor:
    """`compute` of films uint8 [N, H, W], `BATCH` of them at a time: its results [N, ...], on the CPU.

    `compute` is a `ScanClassifier` on `device` or one of its methods. Without TensorFloat-32, because what is computed
    here calibrates a model, locks its thresholds, or is compared with them.
    """
    starts = range(0, len(pixels), BATCH)
    with exact_float32():
        return torch.cat([compute(torch.tensor(pixels[start : start + BATCH]).to(device)).cpu() for start in starts])
