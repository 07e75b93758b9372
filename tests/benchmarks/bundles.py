"""Bundles to measure with, where any probabilities will do."""

from pathlib import Path

import torch

from models.bundle import save_bundle
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from models.statistics.calibration import Calibration
from pipelines.pages.card import render_card


def untrained(name: str, folder: Path, *, size: int) -> str:
    """A bundle with freshly initialised weights in a local folder; returns its model id."""
    spec = ModelSpec(name=name, preprocessing=Preprocessing(size=size))
    torch.manual_seed(0)
    points = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    return save_bundle(
        folder,
        render_card=render_card,
        spec=spec,
        state_dict=build(spec).state_dict(),
        calibration=points,
        evaluation={},
        lineage={},
    ).model_id
