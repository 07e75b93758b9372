"""Bundles of untrained networks: where any probabilities will do, as long as they are the model's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.bundle import Bundle, save_bundle
from models.networks.zoo import build
from models.spec import ModelSpec
from models.statistics.calibration import Calibration
from pipelines.pages.card import render_card
from tests.models.synthetic import small_spec

HALF = Calibration(temperature=1.0, operating_points={"balanced": 0.5})


def save_untrained(
    folder: Path,
    spec: ModelSpec | None = None,
    *,
    network: nn.Module | None = None,
    calibration: Calibration = HALF,
    evaluation: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of `network`, by default of one built from `spec`, its weights drawn by torch's global generator."""
    spec = spec or small_spec()
    return save_bundle(
        folder,
        render_card=render_card,
        spec=spec,
        state_dict=(network or build(spec)).state_dict(),
        calibration=calibration,
        evaluation=evaluation or {},
        lineage=lineage or {},
    )
