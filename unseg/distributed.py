"""One command for one process and for many: `python -m unseg.distributed stages.train_x args...`.

Starts the stage once for each GPU of this machine by torchrun, or UNSEG_PROCESSES times where that is set, or
plainly in this process where that is one. Under torchrun already (several nodes), it adds nothing.
"""

import os
import runpy
import sys
from typing import Any

import torch
from torch import Tensor, nn


def start() -> None:
    """Join the process group that torchrun describes; nothing to do in a plain process."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def share(model: nn.Module) -> nn.Module:
    """The model as DistributedDataParallel, where there is more than one process."""
    return model if world() == 1 else nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def average(x: Tensor) -> Tensor:
    """x, averaged over the processes; carries no gradient."""
    x = x.detach().clone()
    if world() > 1:
        torch.distributed.all_reduce(x)
        x /= world()
    return x


def largest(x: Tensor) -> Tensor:
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


def total(x: Tensor) -> Tensor:
    """x, summed over the processes; gradients of all of them flow back into each."""
    return x if world() == 1 else torch.as_tensor(_Total.apply(x))


def own(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of what belongs to the examples of a whole batch, dealt out as `training.Order` does."""
    return x.movedim(dim, 0)[rank() :: world()].movedim(0, dim)


def barrier() -> None:
    if world() > 1:
        torch.distributed.barrier()


def main() -> None:
    module, *arguments = sys.argv[1:]
    count = int(os.environ.get("UNSEG_PROCESSES", torch.cuda.device_count()))
    if count > 1 and "WORLD_SIZE" not in os.environ:
        from torch.distributed import run

        run.main(["--standalone", "--nproc-per-node", str(count), "-m", module, *arguments])
    else:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
