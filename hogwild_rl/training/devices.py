"""Device, precision and thread count of a run."""

import contextlib
import platform
import statistics
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch

from hogwild_rl.config.base import DeviceName
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.training.distributed import Ranks

# With fewer parameters, kernel launches dominate on a GPU. Two layers of 64 have 10 thousand.
_GPU_FROM_PARAMETERS = 500_000

# Parameters times batch rows (or environments) from which several CPU threads are faster than one:
# with 16 environments and two layers of 64, on two busy cores, 100,000 steps of CartPole-v1 took
# 19 s with two threads and 0.5 s with one.
_THREADS_FROM = 5_000_000

_TRIAL_UPDATES = 10  # per number of threads; even, as every other update of TD3 has two parts


class Device(NamedTuple):
    """Selected device and the reason for the selection."""

    device: torch.device
    reason: str

    @property
    def is_gpu(self) -> bool:
        """True unless the device is the CPU."""
        return self.device.type != "cpu"


def choose(wanted: DeviceName, model: torch.nn.Module, ranks: Ranks | None = None) -> Device:
    """Selects the requested device; "auto" is a GPU if every rank has one and it is faster.

    Raises:
        UserError: a GPU is requested and there is none.
    """
    ranks = ranks or Ranks()
    cpu, cuda = torch.device("cpu"), torch.device("cuda", ranks.local)
    found = torch.cuda.device_count()
    if wanted == "cpu":
        return Device(cpu, "as requested")
    if wanted == "cuda":
        if ranks.local >= found:
            raise UserError(
                f"device cuda needs {ranks.local + 1} GPU, torch {torch.__version__} finds "
                f"{found}: use cpu or auto, or install a torch build for this GPU"
            )
        return Device(cuda, "as requested")
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if size < _GPU_FROM_PARAMETERS:
        return Device(cpu, f"{size:,} parameters are too few for a GPU to be faster")
    if not ranks.agree("GPU", ranks.local < found):
        return Device(cpu, "no GPU found" if not found else "not every rank has a GPU of its own")
    return Device(cuda, f"{size:,} parameters")


def place(config: Any, env: make.EnvInfo, ranks: Ranks) -> tuple[ActorCritic, Device, "Precision"]:
    """Network, device and precision of a run; the precision depends on the device.

    Raises:
        UserError: a GPU is requested and there is none, or CUDA graphs on the CPU.
    """
    network: ActorCritic = config.model(env)
    device = choose(config.device, network, ranks)
    config.compiles(device.device)
    precision = bfloat16(config.precision, env, device.device.type)
    return config.model(env, bfloat16=True) if precision.on else network, device, precision


@contextlib.contextmanager
def enough_memory(settings: str) -> Iterator[None]:
    """Raises UserError, with the settings to reduce, if GPU memory runs out inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{settings} need more memory than the GPU has: reduce them") from error


@contextlib.contextmanager
def limit_threads(
    model: torch.nn.Module, rows: int, *, on_gpu: bool = False, most: int | None = None
) -> Iterator[None]:
    """Limits torch's CPU threads inside; restores the number afterwards.

    One thread if a step of this model and batch size is small, or if a GPU computes: idle threads
    spin after each parallel copy, and delay the threads of the environments. Else `most` at most.
    """
    before = torch.get_num_threads()
    size = sum(parameter.numel() for parameter in model.parameters())
    if on_gpu or size * rows < _THREADS_FROM:
        torch.set_num_threads(1)
    elif most is not None:
        torch.set_num_threads(min(most, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tuned_threads() -> Generator[None, float, None]:
    """Sets the number of torch's CPU threads by measurement, at most to the present number.

    Each number 1, 2, 4, ... does 10 updates, and that with the smallest median the next ones. If 3
    in a row take 5 times its median, all are measured again: on cores that other processes occupy,
    threads wait for each other in every operation. Results may differ in the last bit between
    numbers of threads, as BLAS sums in another order: then a seed does not fix a run.

    Yields:
        Nothing; the caller does an update and sends its duration in seconds.
    """
    counts = [2**power for power in range(torch.get_num_threads().bit_length())]
    while True:
        medians = {}
        for count in counts:
            torch.set_num_threads(count)
            durations = [0.0] * _TRIAL_UPDATES
            for update in range(_TRIAL_UPDATES):
                durations[update] = yield
            medians[count] = statistics.median(durations)
        best = min(counts, key=lambda count: medians[count])
        torch.set_num_threads(best)
        slow = 0
        while slow < 3:
            slow = slow + 1 if (yield) > 5 * medians[best] else 0


class Precision(NamedTuple):
    """Precision of network bodies: bfloat16 or float32, and the reason if bfloat16 is refused."""

    on: bool
    reason: str = ""

    def report(self, info: Callable[[str], None]) -> None:
        """Prints the reason if bfloat16 was requested and is not used."""
        if self.reason:
            info(f"precision float32: {self.reason}")


def bfloat16(precision: str, env_info: make.EnvInfo, device: str = "cpu") -> Precision:
    """Selects bfloat16 if it is requested and faster: on the CPU for convolutions only.

    Measured on a processor with AVX512-BF16: forward and backward of A3C's CNN with 80 images take
    half the time; a small MLP gets slower.
    """
    if precision == "float32":
        return Precision(on=False)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(on=True)
        return Precision(on=False, reason="this GPU has no bfloat16")
    if not ObservationCodec.of(env_info.observation_space).images:
        return Precision(on=False, reason="on the CPU bfloat16 is faster for images only")
    if not has_bfloat16():
        return Precision(on=False, reason="this processor has no bfloat16")
    return Precision(on=True)


def has_bfloat16() -> bool:
    """True if the processor has bfloat16 instructions and torch uses them."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # without AVX512 oneDNN emulates
    return check is not None and bool(check())
