"""A GPU that several trials share: how much of its memory one may take, and what to do when that is not enough.

Torch takes what memory it can get and keeps it for later; the first of several small trials would leave nothing to the
others. So each process has a cap, in proportion to its share of the GPU, and empties its cache after a trial. What a
trial wants beyond its cap is the trial's own failure, and not the others'.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models.errors import RayscanError

_caps: dict[int, float] = {}
"""Number of a GPU -> the share of its memory that this process may take, where that is not all."""


def share_gpu(device: torch.device, share: float) -> None:
    """Let this process take only a share, from 0 to 1, of a GPU's memory; on a CPU nothing happens."""
    if device.type != "cuda" or not 0 < share < 1:
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(share, number)
    _caps[number] = share


def free_bytes(device: torch.device) -> int:
    """What this process may still take of a GPU's memory; 0 on a CPU, whose memory is not counted here."""
    if device.type != "cuda":
        return 0
    number = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(number)
    return allowed_bytes(free, total, torch.cuda.memory_reserved(number), _caps.get(number, 1.0))


def allowed_bytes(free: int, total: int, reserved: int, cap: float) -> int:
    """`free_bytes` of a GPU with `free` of `total` bytes, of whose share `cap` this process has `reserved` some."""
    return max(0, min(free, int(total * cap) - reserved))


def release(device: torch.device | str) -> None:
    """Give the memory that torch keeps for later back to the GPU's other users."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def out_of_memory_is_told(name: str, batch_size: int) -> Iterator[None]:
    """A GPU that is too small for a training is a fault of the training's settings: one line, and no second try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RayscanError(
            f"training of {name} does not fit the GPU's memory, or its share of it; lower the batch size"
            f" ({batch_size}) or give a trial more of the GPU"
        ) from error
