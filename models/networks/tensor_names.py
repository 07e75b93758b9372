"""Names of the tensors in a bundle's weights that are not the network's own.

Apart from `models/networks/familiarity.py` because a bundle is read, and scored by OpenVINO, without torch.
"""

from typing import Final

FAMILIARITY: Final = "familiarity."
"""The names of the familiarity's tensors begin with it."""
LIMIT: Final = f"{FAMILIARITY}limit"
"""The distance from the training films beyond which a film is refused."""
