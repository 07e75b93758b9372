"""Float32 that is float32: without TensorFloat-32, which GPUs otherwise put in its place.

TensorFloat-32 keeps 10 bits of mantissa. cuDNN's convolutions use it unless told otherwise, and matrix products do
where somebody asked for it. Thresholds are locked on probabilities, and engines compared with them, to a
ten-thousandth: so whatever calibrates, locks, or calls itself fp32 computes within `exact_float32`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TensorFloat-32 within the block; the caller's setting of this process is restored afterwards.

    The settings are the process's: another thread that computes meanwhile is exact, too.
    """
    products = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
