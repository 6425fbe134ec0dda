"""Libraries that run a frozen network: PyTorch, or OpenVINO, which takes about half of the time on a CPU.

OpenVINO compiles a network for the processor when it is first run: layers are joined, and weights laid out as its
kernels read them. That takes seconds, once in a process. Features are PyTorch's but for rounding (1e-6 of the largest).
"""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice
from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.progress import doing
from mmad_bank.errors import InputError
from mmad_bank.features.int8 import Int8Scales, in_int8

Runtime = Literal["torch", "openvino"]
"""Library that runs a network."""


def check_runtime(value: str) -> None:
    """Refuse what is no library that runs networks, or is not installed.

    Raises:
        InputError: There is no such choice.
        MissingExtraError: OpenVINO is not installed.
    """
    check_choice(value, get_args(Runtime), "runtime")
    if value == "openvino":
        _openvino()


def _openvino() -> Any:
    return import_extra("openvino", "openvino", "runtime='openvino'", "openvino")


@functools.cache
def _core() -> Any:
    """Return OpenVINO's one core, which lives as long as the process.

    Its plugin for CPUs gives the thread that loads it another stack for signals, and frees that with the last core and
    compiled network. Let go by another thread, the stack would stay in use: the next signal would end the process.
    """
    return _openvino().Core()


class Frozen(nn.Module):
    """A network that gives no gradients, run by PyTorch or by OpenVINO.

    Attributes:
        runtime: The library. On another device than the CPU, and where gradients are asked for, it is PyTorch.
        compute_dtype: Number type of the products. ``"int8"`` is what :meth:`take_int8` gives.
        int8: What integers need to know of the network's inputs; None with another type.
    """

    runtime: Runtime = "torch"
    compute_dtype: str = "float32"

    def __init__(self) -> None:
        super().__init__()
        self.int8: Int8Scales | None = None

    def by(self, runtime: Runtime) -> Any:
        """Return the same network, with the same weights, run by a library.

        Raises:
            InputError: There is no such library, or it does not take the network's number type.
            MissingExtraError: It is not installed.
        """
        check_runtime(runtime)
        check_int8(self.compute_dtype, runtime)
        other = copy.copy(self)
        other.runtime = runtime
        return other

    def body(self, x: Tensor) -> Tensor:
        """Describe normalized images (B, 3, H, W): features (B, P, D) float32."""
        raise NotImplementedError

    def normalized(self, images: Tensor) -> Tensor:
        """Return images as :meth:`body` takes them.

        Raises:
            InputError: The shape, the type or the range is another one.
        """
        raise NotImplementedError

    def take_int8(self) -> None:
        """Let the convolutions compute in 8-bit integers, with ranges that :meth:`measure_int8` measures, or a file's.

        Raises:
            InputError: OpenVINO does not run the network.
        """
        check_int8("int8", self.runtime)
        self.compute_dtype, self.int8 = "int8", Int8Scales(self)

    def measure_int8(self, images: Tensor) -> None:
        """Measure what integers need to know of normal images (B, 3, H, W), see :mod:`mmad_bank.features.int8`."""
        assert self.int8 is not None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            self.int8.measure(self, self.normalized(images))

    def run(self, x: Tensor) -> Tensor:
        """Do :meth:`body`'s work by the runtime.

        Raises:
            InputError: It would not be OpenVINO's on a CPU, which int8 needs, or nothing was measured for int8.
        """
        if self.compute_dtype == "int8":
            check_int8("int8", self.runtime, x.device.type)
        elif self.runtime == "torch" or x.device.type != "cpu" or torch.is_grad_enabled():
            return self.body(x)
        compiled = self.__dict__.setdefault("_compiled", _Compiled())
        return compiled(self, x)

    def warm_up(self, size: int) -> None:
        """Compile the network for images of size × size pixels now, if the runtime would do so for the first ones."""
        if self.runtime != "torch" and next(self.parameters()).device.type == "cpu":
            with torch.no_grad():
                self.run(torch.zeros(1, 3, size, size))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}


def check_int8(compute_dtype: str, runtime: str, device: str = "cpu") -> None:
    """Refuse int8 for what does not compute in it.

    Raises:
        InputError: The runtime is not OpenVINO, or the device is no CPU.

    Example:
        >>> check_int8("int8", "openvino")
    """
    if compute_dtype != "int8":
        return
    if runtime != "openvino":
        raise InputError(f"compute_dtype: expected float32 or bfloat16 with runtime={runtime}, found int8")
    if device != "cpu":
        raise InputError(f"compute_dtype: expected float32 or bfloat16 with device={device}, found int8")


class _Body(nn.Module):
    """A network's body as a module of its own, which is what OpenVINO reads."""

    def __init__(self, network: Frozen) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.body(x)


class _Compiled:
    """What OpenVINO has made of a network: for one size of images, its weights and PyTorch's number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None  # what it was made of, and the model
        self._own = threading.local()  # requests: one serves one thread

    def __call__(self, network: Frozen, x: Tensor) -> Tensor:
        of = self._key(network, x)
        with self._lock:
            if self._made is None or self._made[0] != of:
                self._made = (of, _compile(network, x))
            model = self._made[1]
        if getattr(self._own, "model", None) is not model:
            self._own.model, self._own.request = model, model.create_infer_request()
        found = self._own.request.infer([np.ascontiguousarray(x.numpy())])
        return torch.from_numpy(np.array(found[0], dtype=np.float32))

    @staticmethod
    def _key(network: Frozen, x: Tensor) -> Any:
        """Return what the compiled network depends on; a tensor's version counts the times it was written to."""
        weights = [(id(one), _version(one)) for one in (*network.parameters(), *network.buffers())]
        return tuple(x.shape[1:]), torch.get_num_threads(), network.compute_dtype, weights


def _version(weight: Tensor) -> int:
    """Return how often a tensor was written to."""
    return -1 if weight.is_inference() else weight._version  # noqa: SLF001 (PyTorch has no public name for it)


def _compile(network: Frozen, x: Tensor) -> Any:
    openvino = _openvino()
    precision = "bf16" if network.compute_dtype == "bfloat16" else "f32"
    plain = copy.copy(network)
    plain.runtime, plain.compute_dtype = "torch", "float32"  # OpenVINO chooses what it computes in bfloat16
    if network.int8 is not None:
        plain = in_int8(plain, network.int8)
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    # Autocast would be recorded with the network, and OpenVINO has no such operation.
    with (
        doing("compiling the network with OpenVINO"), warnings.catch_warnings(), torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):  # fmt: skip
        warnings.simplefilter("ignore")  # its tracer warns of sizes, which are those of this network for ever
        model = openvino.convert_model(
            _Body(plain).eval(), example_input=torch.zeros(2, *x.shape[1:], dtype=torch.float32),
            input=openvino.PartialShape([-1, *x.shape[1:]]),
        )  # fmt: skip
        return _core().compile_model(model, "CPU", settings)
