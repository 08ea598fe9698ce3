"""One command for one process and for many: `python -m unseg.engine.distributed stages.train_x args...`.

Starts the stage once for each GPU of this machine by torchrun, or UNSEG_PROCESSES times where that is set, or
plainly in this process where that is one. UNSEG_LAUNCHER is a command that starts it on several nodes, which share this
folder: torchrun's words `-m stages.train_x args...` are put behind it.
"""

import os
import runpy
import shlex
import subprocess
import sys
from typing import Any

from unseg.core import console

if __name__ == "__main__":
    console.guard(importing=True)  # before torch is imported, which takes seconds

import torch
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.engine import environment


def start() -> None:
    """Join the process group that torchrun describes; nothing to do in a plain process."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        if (device := environment.device()).type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def wrap_ddp(model: nn.Module, unused: bool = False) -> nn.Module:
    """The model as DistributedDataParallel, where there is more than one process; unused: some steps leave parameters out."""
    return model if world() == 1 else nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


def all_reduce_mean(x: Tensor) -> Tensor:
    """x, averaged over the processes; carries no gradient."""
    x = x.detach().clone()
    if world() > 1:
        torch.distributed.all_reduce(x)
        x /= world()
    return x


def gather(x: Tensor) -> Tensor:
    """x [...] of every process, by rank: [W, ...]; of the same shape in all; carries no gradient."""
    parts = [torch.empty_like(x) for _ in range(world())] if world() > 1 else [x]
    if world() > 1:
        torch.distributed.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


def all_reduce_max(x: Tensor) -> Tensor:
    """Element by element the largest of all processes; carries no gradient."""
    if world() > 1:
        x = x.detach().clone()
        torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX)
    return x


class _Total(torch.autograd.Function):
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
    """x, summed over the processes; gradients of all of them flow back into each."""
    return x if world() == 1 else torch.as_tensor(_Total.apply(x))


def local_shard(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of what belongs to the examples of a whole batch, dealt out as `training.EpochSampler` does."""
    return x.movedim(dim, 0)[rank() :: world()].movedim(0, dim)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are of the pixels [B, C, H, W] of all processes (nn.SyncBatchNorm knows no CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype != torch.float64 else x
        sums = all_reduce_sum(torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / x.shape[1]])]))  # [C + 1]
        mean, count = sums[:-1] / sums[-1], sums[-1]
        apart = wide - mean[:, None, None]  # [B, C, H, W]
        squares = all_reduce_sum(apart.square().sum((0, 2, 3)))  # [C]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(squares / (count - 1), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = (squares / count + self.eps).rsqrt() * self.weight
        return (apart * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncedDropout(nn.Dropout):
    """Dropout that draws for the whole batch, alike in every process, and keeps this process's part."""

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        every = x.new_ones(len(x) * world(), *x.shape[1:])
        if last:  # numbers are drawn in the order of memory
            every = every.contiguous(memory_format=torch.channels_last)
        return x * local_shard(nn.functional.dropout(every, self.p))


def sync_norms(model: nn.Module) -> None:
    """Where there are several processes: batch norm and dropout as in one that has the whole batch."""
    if world() > 1:
        for part in model.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = SyncedBatchNorm
            if type(part) is nn.Dropout:
                part.__class__ = SyncedDropout


def barrier() -> None:
    if world() > 1:
        torch.distributed.barrier()


def launch(count: int, module: str, arguments: list[str]) -> None:
    """The stage in `count` processes; the first that ends badly, or a signal, ends them all, within half a minute."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--standalone", "--nproc-per-node", str(count), "-m", module, *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"error: {module}: process {rank} of {count} ended with status {failure.exitcode}; its words are above")
    except SignalException:  # process 0 has said it
        sys.exit(1)


def call(command: list[str]) -> int:
    """Run a command; its exit status. What ends this process asks the command to end, too, and waits for that."""
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
        count = environment.processes()
    except InputError as error:
        sys.exit(f"error: {error}")
    within = "WORLD_SIZE" in os.environ  # of what started this
    if (launcher := os.environ.get("UNSEG_LAUNCHER", "").strip()) and not within:
        try:
            status = call([*shlex.split(launcher), "-m", module, *arguments])
        except (OSError, ValueError) as error:
            sys.exit(f"error: UNSEG_LAUNCHER is {launcher!r}, which is no command here ({error}); mend or unset it")
        if status:
            sys.exit(f"error: {module}: UNSEG_LAUNCHER ({launcher}) ended with status {status}; its words are above")
    elif count > 1 and not within:
        launch(count, module, arguments)
    else:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
