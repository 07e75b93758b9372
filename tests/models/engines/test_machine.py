from pathlib import Path

import pytest

from models.engines.machine import (
    NATIVE_FLAGS,
    Machine,
    capability_of,
    choose_device,
    cpu_flags,
    has_native_bf16,
    this_machine,
)
from models.errors import InputError


def test_bfloat16_is_native_where_the_cpu_says_so(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n\nprocessor\t: 1\n")
    assert cpu_flags(tmp_path / "cpuinfo") & NATIVE_FLAGS == {"amx_bf16"}
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert not cpu_flags(tmp_path / "cpuinfo") & NATIVE_FLAGS
    assert cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [
        ((6, 1), ["fp32"]),
        ((7, 0), ["fp16", "fp32"]),  # V100
        ((7, 5), ["fp16", "fp32"]),  # T4: torch emulates bfloat16 there, and says that it is supported
        ((8, 0), ["fp16", "bf16", "fp32"]),
        ((9, 0), ["fp16", "bf16", "fp32"]),
    ],
)
def test_what_a_gpu_computes_in_is_a_matter_of_its_compute_capability(
    capability: tuple[int, int], precisions: list[str]
) -> None:
    kinds = this_machine("cuda:0", capability).kinds()
    assert [kind.name for kind in kinds] == [
        f"torch-{how}-{precision}-cuda"
        for parts in (precisions[:-1], precisions[-1:])
        for how in ("compile", "eager")
        for precision in parts
    ]


def test_a_cpu_has_no_compute_capability() -> None:
    assert capability_of("cpu") is None
    assert not has_native_bf16(None)
    assert not this_machine("cpu").native_fp16


def test_openvino_sees_the_same_as_cpuinfo() -> None:
    from models.engines.openvino_engine import import_openvino

    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert this_machine("cpu").native_bf16 == ("BF16" in capabilities)


def test_engines_of_a_cpu_never_compile() -> None:
    machine = Machine(device="cpu", native_bf16=True, openvino="1", torch="2")
    assert [kind.name for kind in machine.kinds()] == [
        "openvino-bf16-cpu",
        "openvino-fp32-cpu",
        "torch-eager-fp32-cpu",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [("cuda:99", "device 'cuda:99' is not on this machine"), ("gpu", "unknown device"), ("meta", "not supported")],
)
def test_devices_that_are_not_here_are_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_device(name)
