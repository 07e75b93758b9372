"""Bundles to measure with, where any probabilities will do."""

from pathlib import Path

import torch

from models.spec import ModelSpec, Preprocessing
from tests.pipelines.bundles import save_untrained


def untrained(name: str, folder: Path, *, size: int) -> str:
    """A bundle with freshly initialised weights in a local folder; returns its model id."""
    spec = ModelSpec(name=name, preprocessing=Preprocessing(size=size))
    torch.manual_seed(0)
    return save_untrained(folder, spec).model_id
