"""What a node was bought as: its label `market`, which the cluster files give every node."""

from collections.abc import Mapping
from typing import Final

SPOT: Final = "spot"
"""The provider may take such a node away at any time."""


def market_of(labels: Mapping[str, str]) -> str:
    """What a node's labels say: ours, else Ray's own; empty if they do not say."""
    return labels.get("market") or labels.get("ray.io/market-type") or ""
