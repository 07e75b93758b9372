"""The whole model as one module: grey levels in, calibrated class probabilities and the feature distance out."""

import torch
from torch import Tensor, nn

from models.familiarity import Familiarity
from models.preprocess import Preprocess
from models.zoo import classify, features


class ScanClassifier(nn.Module):
    """uint8 [N, H, W] -> float32 [N, C] probabilities that sum to 1. What training, engines and exports share."""

    temperature: Tensor

    def __init__(
        self,
        preprocess: Preprocess,
        network: nn.Module,
        temperature: float = 1.0,
        familiarity: Familiarity | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.familiarity = familiarity
        self.precision = torch.float32
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def to_bfloat16(self) -> "ScanClassifier":
        """Run the network in bfloat16 from now on; what is before and after it stays in float32."""
        self.network.to(torch.bfloat16)
        self.precision = torch.bfloat16
        return self

    def logits(self, pixels: Tensor) -> Tensor:
        """Uncalibrated logits float32 [N, C]."""
        logits: Tensor = self.network(self._input(pixels))
        return logits.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Calibrated probabilities."""
        return self._calibrated(self.logits(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """What the network's classifier sees, float32 [N, D]; for networks that `zoo.has_features`."""
        return features(self.network, self._input(pixels)).flatten(1).float()

    def infer(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities, and the distance from the training films float32 [N], NaN when not fitted."""
        if self.familiarity is None:
            probabilities = self(pixels)
            return probabilities, torch.full_like(probabilities[:, 0], torch.nan)
        found = features(self.network, self._input(pixels))
        probabilities = self._calibrated(classify(self.network, found).float())
        return probabilities, self.familiarity(found.flatten(1).float())

    def _input(self, pixels: Tensor) -> Tensor:
        prepared: Tensor = self.preprocess(pixels)
        return prepared.to(self.precision)

    def _calibrated(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits / self.temperature, dim=1)


class InferenceGraph(nn.Module):
    """`ScanClassifier.infer` as a module of its own, for what compiles or exports modules."""

    def __init__(self, classifier: ScanClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, H, W] -> probabilities [N, C], distance [N]."""
        return self.classifier.infer(pixels)
