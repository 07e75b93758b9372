"""What a machine can run a model with: its device, which precisions are native there, and which engines that leaves."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from models.errors import InputError

if TYPE_CHECKING:
    import torch  # takes two seconds, and scoring on a CPU needs none of it

Library = Literal["torch-eager", "torch-compile", "openvino"]
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: Final = get_args(Precision)

NATIVE_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16"})
"""Flags of /proc/cpuinfo that make bfloat16 faster than float32. Emulated, it is slower: forced on a CPU without,
OpenVINO took four times as long as in float32."""
Capability = tuple[int, int]
"""CUDA compute capability of a GPU, as in `(8, 0)`."""
NATIVE_BF16: Final = (8, 0)
"""The first with bfloat16 in its tensor cores. `torch.cuda.is_bf16_supported()` counts emulation, too (T4, V100)."""
NATIVE_FP16: Final = (7, 0)
"""The first with tensor cores, which compute in float16."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One way to run a model."""

    engine: Library
    precision: Precision
    device: str
    """`cpu` or `cuda`."""

    @property
    def name(self) -> str:
        """As recorded with scores and agreements."""
        return f"{self.engine}-{self.precision}-{self.device}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts about a machine that decide which engines it can run."""

    device: str
    """As torch names it: `cpu` or, for example, `cuda:0`."""
    native_bf16: bool
    native_fp16: bool = False
    """On GPUs only: on CPUs float16 has not been measured."""
    openvino: str | None
    """Version of OpenVINO; None where it is not installed."""
    torch: str

    @property
    def has_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.startswith("cuda")

    def kinds(self) -> tuple[EngineKind, ...]:
        """Every engine that can run here, in the order they are preferred when equally fast.

        On a GPU float16 comes before bfloat16, which is as fast but rounds to 8 bits of mantissa and not 11.

        On a CPU torch is there for what OpenVINO cannot run: OpenVINO was two to ten times as fast on every CPU and
        network measured, and torch.compile, slower than it all the same, took 5 to 90 CPU seconds to compile.
        """
        native = self.native_bf16
        if self.has_gpu:
            kinds = [("torch-compile", "fp16", self.native_fp16), ("torch-compile", "bf16", native)]
            kinds += [("torch-eager", "fp16", self.native_fp16), ("torch-eager", "bf16", native)]
            kinds += [("torch-compile", "fp32", True), ("torch-eager", "fp32", True)]
        else:
            has_openvino = self.openvino is not None
            kinds = [("openvino", "bf16", native and has_openvino), ("openvino", "fp32", has_openvino)]
            kinds += [("torch-eager", "fp32", True)]
        device = "cuda" if self.has_gpu else "cpu"
        return tuple(
            EngineKind(engine=engine, precision=precision, device=device)  # type: ignore[arg-type]
            for engine, precision, can in kinds
            if can
        )

    def version(self, kind: EngineKind) -> str:
        """Library and version, as in `openvino 2026.4.1`."""
        return f"openvino {self.openvino}" if kind.engine == "openvino" else f"torch {self.torch}"


def this_machine(device: str, capability: Capability | None = None) -> Machine:
    """The facts of this machine, for the name of a device that is there.

    `capability` is that of the GPU; None asks torch for it.
    """
    is_gpu = device.startswith("cuda")
    if is_gpu and capability is None:
        capability = capability_of(device)
    return Machine(
        device=device,
        native_bf16=has_native_bf16(capability) if is_gpu else bool(cpu_flags() & NATIVE_FLAGS),
        native_fp16=is_gpu and capability is not None and capability >= NATIVE_FP16,
        openvino=_installed("openvino"),
        torch=version("torch").partition("+")[0],
    )


def has_native_bf16(capability: Capability | None) -> bool:
    """Whether a GPU of this compute capability multiplies in bfloat16; None, which is no GPU, does not."""
    return capability is not None and capability >= NATIVE_BF16


def capability_of(device: "str | torch.device") -> Capability | None:
    """The compute capability of a GPU that is there; None for the CPU."""
    import torch  # noqa: PLC0415 (see above)

    device = torch.device(device)
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of the CPU as Linux names them; empty where there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    return next((frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), frozenset())


def choose_device(name: str | None = None) -> "torch.device":
    """The named torch device, else a GPU when there is one, else the CPU.

    Raises `InputError` for a device that is not on this machine.
    """
    import torch  # noqa: PLC0415 (see above)

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; choose cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"device {name!r} is not supported; choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not on this machine; choose cpu or one of its GPUs")
    return device


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
