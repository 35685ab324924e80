"""Where a run computes."""

import contextlib
import dataclasses
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hogwild_rl.config.base import DeviceName
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.training.distributed import Ranks

# Below this a GPU spends its time on launching kernels. Two layers of 64 have 10 thousand.
_GPU_FROM_PARAMETERS = 500_000

# Parameters times rows of a batch, or environments, from which the threads of a CPU do not just
# wait for each other: with 16 environments and two layers of 64, on two busy cores, 100,000 steps
# of CartPole-v1 took 19 s with two threads and 0.5 s with one.
_THREADS_FROM = 5_000_000


@dataclasses.dataclass(frozen=True)
class Device:
    """A device, and the reason for it."""

    device: torch.device
    reason: str

    @property
    def is_gpu(self) -> bool:
        """True unless it is the CPU."""
        return self.device.type != "cpu"


def choose(wanted: DeviceName, model: torch.nn.Module, ranks: Ranks | None = None) -> Device:
    """The device that was asked for; for "auto" a GPU, if every rank has one and it is faster.

    Args:
        wanted: cpu, cuda or auto.
        model: to be trained.
        ranks: of the run; all of them get the same type of device.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    ranks = ranks or Ranks()
    cpu, cuda = torch.device("cpu"), torch.device("cuda", ranks.local)
    found = torch.cuda.device_count()
    if wanted == "cpu":
        return Device(cpu, "as asked for")
    if wanted == "cuda":
        if ranks.local >= found:
            raise UserError(
                f"device cuda needs {ranks.local + 1} GPU, torch {torch.__version__} sees "
                f"{found}: use cpu or auto, or a torch that is built for yours"
            )
        return Device(cuda, "as asked for")
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if size < _GPU_FROM_PARAMETERS:
        return Device(cpu, f"{size:,} parameters are too few for a GPU to be faster")
    if not ranks.agree("GPU", ranks.local < found):
        return Device(
            cpu, "there is no GPU" if not found else "not every rank has a GPU of its own"
        )
    return Device(cuda, f"{size:,} parameters")


def prepare_process() -> None:
    """Flushes denormals, which are slow, in this thread, and keeps memory that is freed."""
    torch.set_flush_denormal(True)  # averages of inactive units decay into denormals
    shared_memory.retain_freed_memory()


def place(config: Any, env: make.EnvInfo, ranks: Ranks) -> tuple[ActorCritic, Device, "Precision"]:
    """Network, device and precision of a run; the precision depends on the device.

    Args:
        config: settings with `model`, `device`, `compile` and `precision`.
        env: facts about the environment.
        ranks: of the run.

    Raises:
        UserError: a GPU is asked for and there is none, or CUDA graphs on the CPU.
    """
    network: ActorCritic = config.model(env)
    device = choose(config.device, network, ranks)
    config.compiles(device.device)
    precision = bfloat16(config.precision, env, device.device.type)
    return config.model(env, bfloat16=True) if precision.on else network, device, precision


@contextlib.contextmanager
def enough_memory(settings: str) -> Iterator[None]:
    """Around GPU work: UserError where its memory is full, with the settings it depends on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{settings} need more memory than the GPU has: give less") from error


@contextlib.contextmanager
def limit_threads(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Inside, torch computes on one thread if a step is little work; afterwards as before."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) * rows < _THREADS_FROM:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Whether bodies compute in bfloat16, and why not where it was asked for."""

    on: bool
    reason: str = ""

    def report(self, info: Callable[[str], None]) -> None:
        """Prints why bfloat16 is not used, if it was asked for."""
        if self.reason:
            info(f"precision float32: {self.reason}")


def bfloat16(precision: str, env_info: make.EnvInfo, device: str = "cpu") -> Precision:
    """Whether what was asked for pays here: on the CPU for convolutions, where it can do them.

    Measured on a processor with AVX512-BF16, A3C's CNN, 80 images: forward and backward take half
    the time; a small MLP only gets slower.
    """
    if precision == "float32":
        return Precision(on=False)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(on=True)
        return Precision(on=False, reason="this GPU has no bfloat16")
    if not ObservationCodec.of(env_info.observation_space).images:
        return Precision(on=False, reason="on the CPU it only pays for images")
    if not _has_bfloat16():
        return Precision(on=False, reason="this processor has no bfloat16")
    return Precision(on=True)


def _has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 by itself, and torch knows how to let it."""
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (built_in and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # without it oneDNN imitates it
    return asked is not None and bool(asked())
