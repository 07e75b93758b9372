"""What a film costs on this machine."""

from models.engines.latency import latency_ms
from models.spec import ModelSpec, Preprocessing


def test_the_latency_of_a_wider_network_is_longer() -> None:
    def measured(width: int) -> float:
        spec = ModelSpec(name="cnn", parameters={"width": width}, preprocessing=Preprocessing(size=64))
        return latency_ms(spec, device="cpu", threads=1)

    # 256 times the arithmetic: far beyond what a busy machine adds
    assert 0 < measured(4) < measured(64)
