"""How a head on frozen features is trained: everything a person, a recipe or a search may choose. Loads no torch."""

from dataclasses import dataclass

from models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """One head on frozen features, and how it is trained."""

    hidden: int = 0
    """Units of a hidden layer, on the first principal axes of the features (`tuning.training.heads.AXES`); 0 for
    none: logistic regression."""
    l2: float = 0.03
    """Factor of half the squared weights, added to the mean cross entropy, for features scaled to deviation 1."""
    steps: int = 60
    """Steps of L-BFGS at most; it stops earlier once it has converged."""
    seed: int = 0
    """Of the initial weights of a hidden layer."""

    def __post_init__(self) -> None:
        for name, low, high in (("hidden", 0, 4096), ("steps", 1, 10_000), ("seed", 0, 2**63 - 1)):
            if type(getattr(self, name)) is not int or not low <= getattr(self, name) <= high:
                raise InputError(f"head: {name}={getattr(self, name)} is out of range; choose {low} to {high}")
        if isinstance(self.l2, bool) or not isinstance(self.l2, int | float) or not 0 <= self.l2 <= 1e6:
            raise InputError(f"head: l2={self.l2} is out of range; choose 0 to 1000000")
