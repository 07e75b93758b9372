"""What a trial leaves beside its row: the weights and predictions of its best epoch, and its state while it runs.

Where the files lie is drawn in `tuning/study/store.py`. This module has what needs torch.
"""

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from models.errors import InputError
from pipelines.errors import NotFoundError
from pipelines.storage import Store
from tuning.study.store import CHECKPOINT
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import StateDict

LOGITS = "val_logits.safetensors"


def save_checkpoint(store: Store, trial_id: str, checkpoint: Checkpoint) -> None:
    """Put the whole state of a trial after an epoch."""
    store.put(f"trials/{trial_id}/{CHECKPOINT}", checkpoint.to_bytes())


def load_checkpoint(store: Store, trial_id: str) -> Checkpoint | None:
    """The state of a trial after its last whole epoch; None before its first. Raises `InputError` if it is broken."""
    key = f"trials/{trial_id}/{CHECKPOINT}"
    try:
        data = store.get(key)
    except NotFoundError:
        return None
    try:
        return Checkpoint.from_bytes(data)
    except InputError as error:
        raise InputError(f"{store.uri(key)}: {error}: remove this file") from error


def weights_key(trial_id: str) -> str:
    """Key of a trial's weights within STUDY."""
    return f"trials/{trial_id}/weights.safetensors"


def save_weights(store: Store, trial_id: str, state: StateDict) -> None:
    """Put the weights of a trial's best epoch so far."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    store.put(weights_key(trial_id), safetensors.torch.save(contiguous))


def load_weights(store: Store, trial_id: str) -> StateDict:
    """The weights of a trial's best epoch. Raises `NotFoundError`."""
    weights: StateDict = safetensors.torch.load(store.get(weights_key(trial_id)))
    return weights


def save_logits(store: Store, trial_id: str, logits: npt.NDArray[np.float32]) -> None:
    """Put the uncalibrated logits [M, C] at a trial's best epoch so far.

    Of the validation films in their order, then of their copies, where the objective looks at them.
    """
    data = safetensors.torch.save({"logits": torch.from_numpy(logits).contiguous()})
    store.put(f"trials/{trial_id}/{LOGITS}", data)


def load_logits(store: Store, trial_id: str) -> npt.NDArray[np.float32]:
    """What `save_logits` put. Raises `NotFoundError`."""
    logits: npt.NDArray[np.float32] = safetensors.torch.load(store.get(f"trials/{trial_id}/{LOGITS}"))["logits"].numpy()
    return logits
