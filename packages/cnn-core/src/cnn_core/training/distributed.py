"""Several processes that train one network, started by torchrun.

The engine is torch.distributed; there is no launcher here. A recipe's batch is that of all
processes together: a run gives the same result on one as on eight, but for the last bits.
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

__all__ = ["ALONE", "World", "joined", "restarted", "synchronised"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a training: how many there are, and the rank of this one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors up over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def broadcast(self, value: T) -> T:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def most(self, numbers: list[float], device: torch.device) -> list[float]:
        """Return the largest of each number over all processes, so that all decide alike."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the network whose gradients are averaged over all processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=False)


ALONE = World()


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher with its variables, started several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarted() -> bool:
    """Whether this process is a new attempt at a training: by torchrun, or requeued by SLURM."""
    counts = (os.environ.get(f"{who}_RESTART_COUNT", "0") for who in ("TORCHELASTIC", "SLURM"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


def joined(device: str) -> tuple[World, str]:
    """Join the other processes, if there are any; return the world and this process's device.

    A process stays joined until it ends: the same processes may train again.

    Raises:
        UsageError: the device is one particular GPU, which several processes cannot share.
    """
    if not under_torchrun():
        return ALONE, device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device '{device}': each process of several takes its own", "cpu, cuda")
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        # nccl sends objects through the current GPU, which would be the first for every process.
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        with _ended_by_sigterm():
            _join("nccl" if gpu else "gloo")
        atexit.register(_leave)
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return world, device if gpu else "cpu"


def _join(backend: str) -> None:
    """Meet the other processes.

    torchrun keeps one store over all its restarts, in which a process would find the addresses of
    the attempt before (pytorch/pytorch#135712): each attempt gets names of its own in it.
    """
    import torch.distributed.nn  # before there is a group: its functions' defaults would hold it

    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1":
        torch.distributed.init_process_group(backend)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, size, is_master=False
    )
    attempt = f"cnnzoo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own = torch.distributed.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=size)


def _leave() -> None:
    """Leave the other processes, and wait for the threads of gloo to end.

    They end with the last reference to the group. A thread that is left, and frees a tensor while
    the interpreter ends, aborts the process (pytorch/pytorch#190489).
    """
    gc.collect()  # a wrapped network in a reference cycle still refers to the group
    torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once: Python's handler would not run while it waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch normalisation over the batches of all processes.

    torch's own on a GPU; on the CPU, where torch has none, `SyncBatchNorm2d`.
    """
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    # A list, because modules are replaced in the loop.
    for module in list(model.modules()):
        for name, child in module.named_children():
            # No subclasses: their forward may compute something else.
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm2d.of(child))
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015) with mean and variance over all processes."""

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """Return a module with the parameters and buffers of `module`."""
        made = cls(module.num_features, module.eps, module.momentum, module.affine)
        # Share the tensors: loaded weights and statistics stay.
        made.__dict__.update(module.__dict__)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Normalise N C H W by the channel's mean and variance in all processes' batches."""
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        # Processes may have different numbers of samples, so the mean is a sum over a sum. The
        # count travels with the sums: one exchange is cheaper than two.
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _AllReduce.apply(torch.cat([x.sum((0, 2, 3)), count]))
        n, mean = total[-1], total[:-1] / total[-1]
        # A second exchange, because E[x^2] - E[x]^2 in a single one would cancel leading digits.
        centred = x - mean[:, None, None]
        variance = _AllReduce.apply(centred.square().sum((0, 2, 3))) / n
        # The running variance is the unbiased one, as in torch; the batch is normalised by the
        # biased.
        self._keep(mean.detach(), variance.detach() * (n / (n - 1).clamp(min=1)).detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of this batch."""
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
    """A sum over all processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of all processes' gradients."""
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total
