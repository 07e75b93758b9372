"""What recipes start from in these tests."""

from typing import Final

import pytest
import safetensors.torch
import torch

from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from tests.models.synthetic import SIZE

CNN: Final = {"depth": 2, "width": 4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights of the network CNN."""
    torch.manual_seed(0)
    network = build(ModelSpec(name="cnn", parameters=CNN, preprocessing=Preprocessing(size=SIZE)))
    path = tmp_path_factory.mktemp("weights") / "it.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return str(path)
