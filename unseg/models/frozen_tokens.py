"""Tokens of a frozen ViT that are computed once, for each image and for its mirror image, and kept in memory as float16."""

import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unseg.core.console import InputError, Meter
from unseg.engine import batching, distributed, environment
from unseg.engine.precision import autocast

PIXELS = 1_000_000  # of a batch of photographs whose tokens are computed
MAX_MEMORY = 0.8  # fraction of the machine's memory that the tokens may fill


def for_each_view(
    count: int, size: int, load: Callable[[int], Tensor], keep: Callable[[list[int], int, Tensor], None], precision: str
) -> None:
    """Call keep(indices, mirrored, x) for batches of all images (mirrored 0) and of their mirror images (1), without gradients.

    Args:
        count: number of images.
        size: S, pixels a side.
        load: from an index to an image [3, S, S], normalised; picklable, because it may run in loader processes.
        keep: x is [B, 3, S, S] on this process's device.
        precision: of what keep computes.
    """
    device = environment.device()
    batches = batching.batches_by_shape(range(count), lambda _: (size, size), load, PIXELS)
    with torch.inference_mode(), autocast(device, precision), Meter(count, "tokens") as meter:
        for indices, x in batches:
            x = x.to(device)
            for mirrored, view in enumerate((x, x.flip(3))):
                keep(indices, mirrored, view)
            for _ in indices:
                meter.step()


def check_memory(shape: Sequence[int], key: str, size: int, remedy: str) -> None:
    """Raises InputError if the tokens, float16 of this shape in every process, do not fit into this machine's memory.

    key, size: the param that says their resolution, and its value.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 2 * math.prod(shape) * distributed.world()
    if needed > MAX_MEMORY * memory:
        raise InputError(
            f"the tokens of {shape[0]} train images at {key} {size} take {needed / 1e9:.1f} GB of the {memory / 1e9:.1f} GB of "
            f"memory; {remedy}"
        )
