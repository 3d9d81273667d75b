"""Measure the inference of untrained networks: images per second, latency and memory."""

from __future__ import annotations

import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.errors import UsageError, ZooError
from cnn_core.layers.tracing import trace
from cnn_core.plugins.discovery import describe
from cnn_core.specs import ModelSpec
from cnn_core.training.allocator import keep_memory
from cnn_core.training.device import autocast
from cnn_core.training.exported import READERS, require_onnx
from cnn_core.training.exporting import FORMATS, WRITERS
from cnn_core.training.inference import optimized, require_bf16

__all__ = ["Measured", "Setting", "benchmark", "percentile", "threads"]

MIN_CALLS = 3  # of each measurement, however slow the network is

Compute = Callable[[Tensor], Tensor]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How to run the networks of a benchmark.

    `format` is "eager", "torch-export" or "onnx"; the options `precision`, `compile` and
    `optimize` apply to "eager" only. Images have `image_size` pixels per side, or the size of the
    network's paper if it is 0. Each measurement takes at least `seconds`. `peer` is "torchvision",
    "timm" or empty.

    Raises:
        UsageError: an option is invalid, or does not apply to the format.
    """

    batch_sizes: tuple[int, ...] = (16,)
    format: str = "eager"
    precision: str = "fp32"
    compile: bool = False
    optimize: bool = False
    image_size: int = 0
    seconds: float = 2.0
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    peer: str = ""

    def __post_init__(self) -> None:
        if min(self.batch_sizes, default=0) < 1:
            raise UsageError(f"batch sizes {self.batch_sizes}: expected positive integers")
        if not self.seconds > 0:
            raise UsageError(f"seconds = {self.seconds}: expected a positive number")
        if self.format != "eager":
            self._require_no_eager_options()
        if self.format == "onnx":
            require_onnx("onnx", "onnxruntime", "onnxscript")
        if self.precision == "bf16":
            require_bf16(self.device)

    def _require_no_eager_options(self) -> None:
        options = {
            f"--precision {self.precision}": self.precision != "fp32",
            "--compile": self.compile,
            "--optimize": self.optimize,
            f"--device {self.device.type}": self.device.type != "cpu",
        }
        for option, is_used in options.items():
            if is_used:
                raise UsageError(
                    f"{option} does not apply to --format {self.format}", "use --format eager"
                )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One network at one batch size.

    `p50`, `p90` and `p99` are percentiles of the milliseconds per call at batch size 1. `memory`
    is the peak size in bytes of all tensors that one batch allocates, without the weights; None
    for formats with memory that torch does not manage. `input` is C H W. `ratio` is the peer's
    time divided by ours, the median over interleaved calls: above 1, ours is faster.
    """

    model: str
    batch_size: int
    images_per_second: float
    p50: float
    p90: float
    p99: float
    memory: int | None
    params: int
    macs: int
    input: tuple[int, int, int]
    peer_images_per_second: float | None = None
    ratio: float | None = None


def benchmark(
    name: str,
    setting: Setting,
    *,
    clock: Clock = time.perf_counter,
    on_step: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Measure one network at all batch sizes; its weights are random.

    `on_step` is called after each measurement: one of the latency, one for each batch size.

    Raises:
        UnknownNameError: there is no such model.
        UsageError: the images are too small, an option does not apply, or the peer is not
            installed or does not have the network.
        ZooError: the network cannot be exported.
    """
    spec = registry.models().get(name)
    shape = _input(spec, setting.image_size)
    model = create_model(name).to(setting.device).eval()
    peer = _peer(name, spec, model, setting) if setting.peer else None
    if setting.device.type == "cpu":
        keep_memory()
    traced = trace(partial(create_model, name), (), shape)
    # Exported files are for one batch size.
    eager = _eager(model, setting, shape) if setting.format == "eager" else None
    export = partial(_exported, model, name, setting.format, shape)
    (latencies,) = _timed([_call(eager or export(1), 1, shape, setting)], setting, clock)
    on_step()
    p50, p90, p99 = (1000 * percentile(latencies, p) for p in (50, 90, 99))
    rows = []
    for batch_size in setting.batch_sizes:
        sides = [_call(eager or export(batch_size), batch_size, shape, setting)]
        if peer is not None:
            sides.append(_call(peer, batch_size, shape, setting))
        seconds = _timed(sides, setting, clock)
        ours, *theirs = (batch_size / statistics.median(side) for side in seconds)
        row = Measured(
            model=name,
            batch_size=batch_size,
            images_per_second=ours,
            p50=p50,
            p90=p90,
            p99=p99,
            memory=_peak_memory(sides[0], setting),
            params=traced.params,
            macs=traced.macs,
            input=shape,
            peer_images_per_second=theirs[0] if theirs else None,
            ratio=_ratio(seconds) if theirs else None,
        )
        rows.append(row)
        on_step()
    return rows


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, by linear interpolation between the two nearest values."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    return low + (place - below) * (high - low)


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Compute with `count` threads in the block, and yield it; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _input(spec: ModelSpec, size: int) -> tuple[int, int, int]:
    channels, height, width = spec.input
    if not size:
        return channels, height, width
    if size < spec.min_size:
        raise UsageError(
            f"image size {size}: '{spec.name}' needs at least {spec.min_size}",
            f"use --image-size {spec.min_size} or more",
        )
    return channels, size, size


def _eager(model: nn.Module, setting: Setting, input: tuple[int, int, int]) -> Compute:
    """Return the function that computes the network's outputs without exporting it."""
    if setting.optimize:
        return optimized(model, input, precision=setting.precision, compile=setting.compile)
    return torch.compile(model) if setting.compile else model


def _exported(
    model: nn.Module, name: str, format: str, input: tuple[int, int, int], batch_size: int
) -> Compute:
    """Return the function that runs the network's exported file, for one batch size."""
    try:
        program = torch.export.export(model, (torch.randn(batch_size, *input),))
    except Exception as error:  # torch.export raises many types of exception
        raise ZooError(f"torch cannot export '{name}': {describe(error)}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{FORMATS[format]}"
        with path.open("wb") as file:
            WRITERS[format](program, file, {})
        return READERS[FORMATS[format]](str(path))


def _peer(name: str, spec: ModelSpec, model: nn.Module, setting: Setting) -> nn.Module:
    """Return the peer's network of the same name, in eval mode."""
    try:
        library = import_module(setting.peer)
    except ImportError as error:
        raise UsageError(
            f"{setting.peer} is not installed", f"pip install {setting.peer}"
        ) from error
    known = library.models if setting.peer == "torchvision" else library
    if spec.name not in known.list_models():
        raise UsageError(f"{setting.peer} has no network called '{spec.name}'", "leave out --peer")
    if setting.peer == "torchvision":
        # GoogLeNet and Inception warn that their initialisation is slow.
        options = {"init_weights": False} if spec.name in ("googlenet", "inception_v3") else {}
        found: nn.Module = known.get_model(spec.name, weights=None, **options)
    else:
        found = known.create_model(spec.name)
    theirs, ours = (sum(p.numel() for p in m.parameters()) for m in (found, model))
    if theirs != ours:
        raise UsageError(
            f"{setting.peer}'s '{spec.name}' is another network: it has {theirs:,} parameters, "
            f"'{name}' has {ours:,}",
            "leave out --peer",
        )
    return found.to(setting.device).eval()


def _call(
    compute: Compute, batch_size: int, input: tuple[int, int, int], setting: Setting
) -> Callable[[], object]:
    """Return a function that computes one batch of random images, and waits for the result."""
    images = torch.randn(batch_size, *input, device=setting.device)

    def call() -> None:
        with torch.inference_mode(), autocast(setting.device, setting.precision):
            compute(images)
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)

    return call


def _timed(
    sides: Sequence[Callable[[], object]], setting: Setting, clock: Clock
) -> list[list[float]]:
    """Call the sides in turn for `seconds` for each side; return the seconds of their calls.

    Other load on the machine then affects all sides alike. The first call of each is a warm-up.
    """
    for call in sides:
        call()
    found: list[list[float]] = [[] for _ in sides]
    while len(found[0]) < MIN_CALLS or sum(map(sum, found)) < setting.seconds * len(sides):
        for call, seconds in zip(sides, found, strict=True):
            began = clock()
            call()
            seconds.append(clock() - began)
    return found


def _ratio(seconds: Sequence[Sequence[float]]) -> float:
    """Return the peer's time divided by ours: the median over pairs of consecutive calls."""
    ratio: float = statistics.median(theirs / ours for ours, theirs in zip(*seconds, strict=True))
    return ratio


def _peak_memory(call: Callable[[], object], setting: Setting) -> int | None:
    """Return the peak number of bytes that a call allocates; None if torch cannot tell."""
    if setting.device.type == "cuda":
        before = torch.cuda.memory_allocated(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        call()
        peak: int = torch.cuda.max_memory_allocated(setting.device) - before
        return peak
    # Neither onnxruntime nor compiled code allocates through torch's dispatcher.
    if setting.format == "onnx" or setting.compile or setting.device.type != "cpu":
        return None
    allocated = _Allocated()
    with allocated:
        call()
    return allocated.peak


class _Allocated(TorchDispatchMode):
    """Track the size of the tensors that operations return, until they are freed, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        # Views share a storage, and in-place operations return one that is known.
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size
