"""Distributed data-parallel training on processes started by torchrun.

This module uses torch.distributed and has no launcher of its own. A recipe's batch size is the
total over all processes, so the number of processes changes only the last bits of a result.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from cnn_core.errors import UsageError

__all__ = ["ALONE", "World", "is_restart", "join_processes", "with_sync_batchnorm"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train together: their number, and the rank of this one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; the numbers of rows may differ."""
        if self.size == 1:
            return rows
        own = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(counts, own)
        # Pad to the longest: all_gather needs tensors of one shape.
        padded = rows.new_zeros(max(map(int, counts)), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.zeros_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def max(self, numbers: list[float], device: torch.device) -> list[float]:
        """Return the maximum of each number over all processes, so that all decide alike."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            torch.distributed.barrier()

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the network in DistributedDataParallel if there are several processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=False)


ALONE = World()


def is_distributed() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_restart() -> bool:
    """Whether torchrun has restarted this process, or SLURM has requeued its job."""
    launchers = ("TORCHELASTIC", "SLURM")
    counts = (os.environ.get(f"{launcher}_RESTART_COUNT", "0") for launcher in launchers)
    return any(count.isdigit() and int(count) > 0 for count in counts)


def join_processes(device: str) -> tuple[World, str]:
    """Join the other processes, if any; return the world and the name of this process's device.

    The process group stays initialised until the process ends, so that it can train again.

    Raises:
        UsageError: there are several processes, and `device` is not auto, cpu or cuda.
    """
    if not is_distributed():
        return ALONE, device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device '{device}': with several processes, each one chooses its own",
            "use auto, cpu or cuda",
        )
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        # NCCL sends objects through the current GPU, which is GPU 0 in every process by default.
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        with _default_sigterm():
            _init_process_group("nccl" if gpu else "gloo")
        atexit.register(_destroy_process_group)
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return world, device if gpu else "cpu"


def _init_process_group(backend: str) -> None:
    """Initialise the process group, with separate store keys for each restart.

    torchrun keeps one store across restarts. Without a separate prefix, a restarted process would
    read the addresses of the previous attempt (pytorch/pytorch#135712).
    """
    # Import before the group exists: default arguments in this module would keep it alive.
    import torch.distributed.nn

    shared_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared_store or os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1":
        torch.distributed.init_process_group(backend)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, size, is_master=False
    )
    attempt = f"cnnzoo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    prefixed = torch.distributed.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=prefixed, rank=rank, world_size=size)


def _destroy_process_group() -> None:
    """Destroy the process group, so that gloo's threads end before the interpreter exits.

    They end with the last reference to the group. A thread that frees a tensor during interpreter
    shutdown aborts the process (pytorch/pytorch#190489).
    """
    gc.collect()  # a DDP-wrapped network in a reference cycle would keep the group alive
    torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _default_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once: a Python handler cannot run during a blocking call."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def with_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch normalisation synchronised across processes.

    On a GPU use torch's SyncBatchNorm. On the CPU, which it does not support, replace each
    BatchNorm2d by `SyncBatchNorm2d`.
    """
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    # Iterate over a copy, because the loop replaces modules.
    for module in list(model.modules()):
        for name, child in module.named_children():
            # Leave subclasses alone: they may compute something else.
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm2d.from_module(child))
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015) with statistics over all processes."""

    @classmethod
    def from_module(cls, module: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """Return a synchronised module that shares the parameters and buffers of `module`."""
        synchronised = cls(module.num_features, module.eps, module.momentum, module.affine)
        # Share the tensors, so that loaded weights and statistics are kept.
        synchronised.__dict__.update(module.__dict__)
        return synchronised

    def forward(self, x: Tensor) -> Tensor:
        """Normalise N C H W by each channel's mean and variance over all processes' batches."""
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        # Batch sizes may differ between processes, so divide the total sum by the total count.
        # Reduce both in one call, which is cheaper than two.
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _AllReduce.apply(torch.cat([x.sum((0, 2, 3)), count]))
        n, mean = total[-1], total[:-1] / total[-1]
        # A second all-reduce: E[x^2] - E[x]^2 would need only one, but loses precision.
        centred = x - mean[:, None, None]
        variance = _AllReduce.apply(centred.square().sum((0, 2, 3))) / n
        # As in torch, the running variance is unbiased and the batch variance biased.
        self._update_running(
            mean.detach(), variance.detach() * (n / (n - 1).clamp(min=1)).detach()
        )
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics with those of this batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)


class _AllReduce(torch.autograd.Function):
    """Sum a tensor over all processes; backward sums the gradients in the same way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients of all processes."""
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total
