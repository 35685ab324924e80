"""Training with the learner's tensors on a fake device, on a machine without a GPU.

FakeTensorMode makes tensors without values on any device, and raises if an operation mixes
devices. torch's Python backend registers the device for the rest of the process, so this module is
a program. Reads of fake tensors return constants; environments and host buffers are real.

    python -m tests.fake_device a2c '{"env": "CartPole-v1", "compile": true}'
"""

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from hogwild_rl import a2c, ddpg, ppo, td3
from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs import make
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.learn import cuda_graphs
from hogwild_rl.runs import checkpoint, run
from hogwild_rl.training import devices

PROGRAMS: dict[str, Any] = {"a2c": a2c, "ddpg": ddpg, "ppo": ppo, "td3": td3}
DEVICE_TYPE = "fake"
READS: dict[str, Any] = {"__float__": 1.0, "__int__": 1, "__bool__": True, "item": 1.0}
NOT_RECORDABLE = {*READS, "cpu", "tolist", "numpy", "nonzero", "masked_select", "unique"}


# torch has no meta kernel for a learning rate that is a tensor.
torch.library.impl("aten::_fused_adam_.tensor_lr", "Meta")(lambda *_, **__: None)


class Generator(torch.Generator):
    """CPU generator whose `device` is the requested one."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        self = super().__new__(cls)
        self.device_type = torch.device(device).type
        return self

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_type)


class Host(TorchFunctionMode):
    """Host operations: reads of fake tensors return constants, tensors of the host are real."""

    recording = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(function, "__name__", ""), args[0] if args else None
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        fake = isinstance(first, FakeTensor)
        masked = name == "__getitem__" and getattr(args[1], "dtype", None) == torch.bool
        if Host.recording and fake:
            mixed = name == "copy_" and len({tensor.device.type for tensor in tensors}) > 1
            if name in NOT_RECORDABLE or mixed or masked:
                raise RuntimeError(f"{name} of {list(first.shape)} while a graph is captured")
        generator = kwargs.get("generator")
        if isinstance(generator, Generator) and (fake or "device" in kwargs):
            device = first.device if fake else torch.device(kwargs["device"])
            assert generator.device_type == device.type, (name, generator.device_type, device)
            del kwargs["generator"]
        if fake:
            if name in READS:
                return READS[name]
            if name == "__set__":  # `.data = `: can change the device of real tensors only
                first.fake_device = args[1].fake_device
                return None
            if masked:
                assert args[1].device == first.device
                return first.flatten(0, args[1].dim() - 1)
            if name in ("numpy", "tolist"):
                assert first.device.type == "cpu", f"{name} of a tensor on {first.device}"
                with unset_fake_temporarily():
                    zeros = torch.zeros(first.shape, dtype=first.dtype)
                    return getattr(zeros, name)()
        in_place = name.endswith("_") and not name.startswith("_")
        real = tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if real and (in_place or name in ("numpy", "share_memory_", *READS)):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        return function(*args, **kwargs)


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function wrapped to run outside of FakeTensorMode."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return called


class Recorder:
    """Replacement of `cuda_graphs.Captured` that raises where a CUDA graph capture does."""

    count = 0

    def __init__(
        self,
        function: Callable[[], Tensor],
        device: torch.device,
        generator: torch.Generator | None = None,
        changes: Sequence[Tensor] = (),
    ) -> None:
        assert device.type == DEVICE_TYPE
        assert all(tensor.device == device for tensor in changes)
        assert generator is None or isinstance(generator, Generator)
        function()
        Host.recording = True
        try:
            self._output = function()
        finally:
            Host.recording = False
        Recorder.count += 1

    def __call__(self) -> Tensor:
        return self._output


def check_saved(checkpoint: Any, *_: Any) -> None:
    """Replacement of `Checkpoint.save`: asserts that the parameters are on the CPU."""
    for name, tensor in checkpoint.parameters.items():
        assert tensor.device.type == "cpu", f"{name} saved from {tensor.device}"


def train(program: Any, settings: dict[str, Any]) -> Any:
    """Trains on the fake device and returns the run's counters."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE_TYPE)
    device = torch.device(DEVICE_TYPE, 0)
    empty_rollout, empty_batch = Rollout.empty.__func__, ReplayBuffer.empty
    Rollout.empty = classmethod(
        lambda cls, T, B, env_codec, device=None, pinned=False: (
            empty_rollout if device else real(empty_rollout)
        )(cls, T, B, env_codec, device)
    )
    ReplayBuffer.empty = lambda self, count, device=None, pinned=False: (
        empty_batch if device else real(empty_batch)
    )(self, count, device)
    shared_memory.zeros, make.inspect_env = real(shared_memory.zeros), real(make.inspect_env)
    devices.choose = lambda *_: devices.Device(device, "fake")
    cuda_graphs.Captured = Recorder
    run.Agent = lambda checkpoint, **_: checkpoint
    checkpoint.Checkpoint.save = check_saved
    torch.Generator = Generator
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeTensorMode(allow_non_fake_inputs=True),
        Host(),
    ):
        config = program.Config(run_dir=f"{folder}/run", quiet=True, **settings)
        return program.train(config).counters


class Reading(nn.Module):
    """Network body that reads a tensor on the host."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(space.shape[0], 4)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows) * (1.0 if rows.sum().item() > 0 else 2.0)


class Masking(Reading):
    """Network body whose shapes depend on values."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows) + rows[rows > 0].sum()


NETWORKS = {"reading": Reading, "masking": Masking}


def main(algorithm: str, settings: dict[str, Any]) -> None:
    """Trains and prints the numbers of steps, updates and captured graphs."""
    if "network" in settings:
        settings["network"] = NETWORKS[settings["network"]]
    try:
        counters = train(PROGRAMS[algorithm], settings)
    except UserError as error:
        sys.exit(f"UserError: {error}")
    print(json.dumps([counters.steps, counters.updates, Recorder.count]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
