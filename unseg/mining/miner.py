"""Object masks of photographs, in batches of like shape: the ViT's last block, `affinity`, and back to pixels.

Shapes: H rows, W columns of a photograph at its original size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.core.console import Meter
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.precision import autocast
from unseg.mining import affinity
from unseg.models import vit

PIXELS = 3_000_000  # of a batch
T = TypeVar("T")


def masks(
    model: VisionTransformer,
    items: Sequence[T],
    size: Callable[[T], tuple[int, int]],
    read: Callable[[T], Pillow.Image],
    p: affinity.Mining,
    patch: int,
) -> Iterator[tuple[T, np.ndarray]]:
    """Each item and its first object's mask [H, W] bool; see `objects`."""
    for item, found in objects(model, items, size, read, replace(p, objects=1), patch):
        yield item, found[0]


@torch.inference_mode()
def objects(
    model: VisionTransformer,
    items: Sequence[T],
    size: Callable[[T], tuple[int, int]],
    read: Callable[[T], Pillow.Image],
    p: affinity.Mining,
    patch: int,
    left: Callable[[list[list[T]]], list[list[T]]] = list,
) -> Iterator[tuple[T, list[np.ndarray]]]:
    """Each item and its objects' masks [H, W] bool, the first mined first, in an order of shapes.

    Args:
        size: (H, W) of the photograph that `read` will return, told without reading it.
        read: picklable; runs in loader processes.
        patch: side of a patch, pixels.
        left: of all batches, those that are to be done here.
    """
    device = environment.device()
    model = model.to(device)

    def padded(item: T) -> tuple[int, int]:
        h, w = photos.short_side(size(item), p.resize)
        return h + -h % patch, w + -w % patch

    def load(item: T) -> Tensor:
        small = photos.resize(read(item), photos.short_side(size(item), p.resize))
        return batching.pad_to(batching.to_tensor(small), patch)

    with Meter(len(items), "mine") as meter:
        for batch, pixels in batching.batches_by_shape(items, padded, load, PIXELS, left):
            with autocast(device, p.precision):
                query, keys = vit.last_block(model, pixels.to(device))
            query, keys = query.float(), keys.float()
            mined = affinity.Mined(*(x.cpu() for x in affinity.first(query, keys, p)))
            grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
            for i, item in enumerate(batch):
                own = affinity.Mined(*(x[i : i + 1] for x in mined))
                found = affinity.regions(query[i : i + 1], keys[i : i + 1], own, grid, p)
                resized = photos.short_side(size(item), p.resize)
                yield item, [affinity.to_pixels(patches, resized, size(item), patch) for patches in found]
                meter.step()
