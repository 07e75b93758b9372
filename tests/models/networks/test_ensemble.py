"""An ensemble's logits are the mean of its members', whichever way they are computed."""

from dataclasses import replace

import pytest
import torch

from models.engines.export import export_graph
from models.engines.openvino_engine import import_openvino
from models.errors import InputError
from models.networks.classifier import trained_classifier
from models.networks.ensemble import Ensemble
from models.networks.zoo import build, classify, described, describing, features, has_features
from models.spec import ModelSpec
from tests.models.synthetic import blob_films, small_spec


@pytest.mark.parametrize(("name", "size"), [("cnn", 32), ("mlp", 32), ("majority", 32), ("mobilenetv2_035", 64)])
def test_its_logits_are_the_mean_of_the_members(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build(replace(small_spec(name, size), members=3)).eval()
    assert isinstance(network, Ensemble)
    films = torch.randn(4, 1, size, size)
    with torch.inference_mode():
        each = [member(films) for member in network.members]
        torch.testing.assert_close(network(films), sum(each) / 3)
        if name == "majority":
            assert not has_features(network, films)
            return
        assert has_features(network, films)
        assert not torch.allclose(each[0], each[1], atol=1e-3)
        computed, seen = described(network, films)
        torch.testing.assert_close(computed, features(network, films))
        torch.testing.assert_close(classify(network, computed), network(films))
        torch.testing.assert_close(seen, described(network.members[0], films)[1])
        assert describing(network) is network.members[0]
        assert describing(network.members[0]) is network.members[0]


def test_it_is_one_graph() -> None:
    openvino = import_openvino()
    spec = replace(small_spec("cnn"), members=2)
    torch.manual_seed(0)
    classifier = trained_classifier(spec, build(spec).state_dict())
    xml, weights = export_graph(classifier)
    # where the CPU has a matrix unit OpenVINO would compute in bfloat16
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = openvino.Core().compile_model(openvino.Core().read_model(xml, weights), "CPU", hints)
    films = blob_films(5).pixels
    with torch.inference_mode():
        expected = classifier(torch.tensor(films))
    torch.testing.assert_close(torch.tensor(graph([films])[0]), expected, rtol=1e-4, atol=1e-5)


def test_a_specification_says_how_many_and_of_one_network_stays_what_it_was() -> None:
    one, three = small_spec("cnn"), replace(small_spec("cnn"), members=3)
    assert "members" not in one.to_json()
    assert ModelSpec.from_json(one.to_json()) == one
    assert ModelSpec.from_json(three.to_json()) == three
    for wrong in (0, 51):
        with pytest.raises(InputError, match="choose 1 to 50"):
            replace(one, members=wrong)
