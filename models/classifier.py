"""The whole model as one module: grey levels in, calibrated class probabilities out."""

import torch
from torch import Tensor, nn

from models.preprocess import Preprocess


class ScanClassifier(nn.Module):
    """uint8 [N, H, W] -> float32 [N, C] probabilities that sum to 1. What training, engines and exports share."""

    temperature: Tensor

    def __init__(self, preprocess: Preprocess, network: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def logits(self, pixels: Tensor) -> Tensor:
        """Uncalibrated logits float32 [N, C]."""
        logits: Tensor = self.network(self.preprocess(pixels))
        return logits.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Calibrated probabilities."""
        return torch.softmax(self.logits(pixels) / self.temperature, dim=1)
