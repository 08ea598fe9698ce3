"""A stage in one process or in several: `python -m unseg.engine.distributed stages.train_x args...`.

By torchrun it starts one process for each GPU of this machine, or UNSEG_PROCESSES. A single one runs without torchrun.
UNSEG_LAUNCHER is a command that starts the stage on several nodes, which share this folder; torchrun's arguments
`-m stages.train_x args...` are appended to it.
"""

import os
import runpy
import shlex
import subprocess
import sys
from typing import Any

from unseg.core import console

if __name__ == "__main__":
    console.guard(importing=True)  # before the import of torch, which takes seconds

import torch
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.engine import environment


def start() -> None:
    """Join torchrun's process group; in a plain process, do nothing."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        if (device := environment.device()).type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def barrier() -> None:
    if world() > 1:
        torch.distributed.barrier()


def wrap_ddp(model: nn.Module, unused: bool = False) -> nn.Module:
    """DistributedDataParallel, if there are several processes. unused: some steps use only part of the parameters."""
    return model if world() == 1 else nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Elementwise mean over the processes, without gradient."""
    x = x.detach().clone()
    if world() > 1:
        torch.distributed.all_reduce(x)
        x /= world()
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Elementwise maximum over the processes, without gradient."""
    if world() > 1:
        x = x.detach().clone()
        torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX)
    return x


def gather(x: Tensor) -> Tensor:
    """x [...] of each process, by rank: [W, ...], without gradient. All must have the same shape."""
    parts = [torch.empty_like(x) for _ in range(world())] if world() > 1 else [x]
    if world() > 1:
        torch.distributed.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


class _AllReduceSum(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce warns that it is deprecated; its successor is a private module of torch
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def all_reduce_sum(x: Tensor) -> Tensor:
    """Elementwise sum over the processes; the gradients of all processes flow back into each."""
    return x if world() == 1 else torch.as_tensor(_AllReduceSum.apply(x))


def local_shard(x: Tensor, dim: int = 0) -> Tensor:
    """This process's examples of a tensor of the whole batch, distributed as by `training.EpochSampler`."""
    return x.movedim(dim, 0)[rank() :: world()].movedim(0, dim)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the pixels [B, C, H, W] of all processes. nn.SyncBatchNorm does not run on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype != torch.float64 else x
        sums = all_reduce_sum(torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / x.shape[1]])]))  # [C + 1]
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = wide - mean[:, None, None]  # [B, C, H, W]
        squares = all_reduce_sum(centred.square().sum((0, 2, 3)))  # [C]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(squares / (count - 1), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = (squares / count + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncedDropout(nn.Dropout):
    """Dropout that draws the mask of the whole batch, the same in each process, and uses this process's part."""

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        mask = x.new_ones(len(x) * world(), *x.shape[1:])
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):  # numbers are drawn in memory order
            mask = mask.contiguous(memory_format=torch.channels_last)
        return x * local_shard(nn.functional.dropout(mask, self.p))


def sync_norms(model: nn.Module) -> None:
    """Let batch norm and dropout of several processes compute what one process computes for the whole batch."""
    if world() > 1:
        for part in model.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = SyncedBatchNorm
            if type(part) is nn.Dropout:
                part.__class__ = SyncedDropout


def launch(count: int, module: str, arguments: list[str]) -> None:
    """Run the stage in `count` processes. A failed process or a signal ends all of them within half a minute."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--standalone", "--nproc-per-node", str(count), "-m", module, *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"error: {module}: process {rank} of {count} ended with status {failure.exitcode}; see its message above")
    except SignalException:  # process 0 has printed the message
        sys.exit(1)


def call(command: list[str]) -> int:
    """Run a command and return its exit status. If this process is ended, the command is ended first."""
    console.guard()
    with subprocess.Popen(command) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


def main() -> None:
    module, *arguments = sys.argv[1:]
    try:
        count = environment.process_count()
    except InputError as error:
        sys.exit(f"error: {error}")
    launched = "WORLD_SIZE" in os.environ
    if (launcher := os.environ.get("UNSEG_LAUNCHER", "").strip()) and not launched:
        try:
            status = call([*shlex.split(launcher), "-m", module, *arguments])
        except (OSError, ValueError) as error:
            sys.exit(f"error: UNSEG_LAUNCHER is {launcher!r}, which is not a command ({error}); correct or unset it")
        if status:
            sys.exit(f"error: {module}: UNSEG_LAUNCHER ({launcher}) ended with status {status}; see its messages above")
    elif count > 1 and not launched:
        launch(count, module, arguments)
    else:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
