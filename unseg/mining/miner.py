"""Object masks of photographs: batches of one shape, the ViT's last block, `affinity`, and back to pixels.

Shapes: H rows, W columns of a photograph at its original size.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.batching import Batches
from unseg.engine.precision import autocast
from unseg.mining import affinity
from unseg.models import vit

PIXELS = 3_000_000  # of a batch
T = TypeVar("T")


def load_batches(
    items: Iterable[T], size: Callable[[T], tuple[int, int]], read: Callable[[T], Pillow.Image], p: affinity.Mining, patch: int
) -> Batches[T]:
    """The photographs as batches for the ViT: resized to p.resize and padded to whole patches.

    Args:
        size: (H, W) of the photograph that `read` will return, computed without reading it.
        read: picklable; runs in loader processes.
        patch: side of a patch, pixels.
    """

    def padded(item: T) -> tuple[int, int]:
        h, w = photos.short_side(size(item), p.resize)
        return h + -h % patch, w + -w % patch

    def load(item: T) -> Tensor:
        small = photos.resize(read(item), photos.short_side(size(item), p.resize))
        return batching.pad_to(batching.to_tensor(small), patch)

    return batching.batches_by_shape(items, padded, load, PIXELS)


@torch.inference_mode()
def objects(
    model: VisionTransformer,
    batches: Iterable[tuple[list[T], Tensor]],
    size: Callable[[T], tuple[int, int]],
    p: affinity.Mining,
    patch: int,
) -> Iterator[tuple[T, list[np.ndarray]]]:
    """Each item of the batches and its objects' masks [H, W] bool, the one mined first at the front."""
    device = environment.device()
    model = model.to(device)
    for items, pixels in batches:
        with autocast(device, p.precision):
            query, keys = vit.last_block(model, pixels.to(device))
        query, keys = query.float(), keys.float()
        mined = affinity.Mined(*(x.cpu() for x in affinity.first(query, keys, p)))
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        for i, item in enumerate(items):
            single = affinity.Mined(*(x[i : i + 1] for x in mined))
            regions = affinity.regions(query[i : i + 1], keys[i : i + 1], single, grid, p)
            resized = photos.short_side(size(item), p.resize)
            yield item, [affinity.to_pixels(patches, resized, size(item), patch) for patches in regions]


def masks(
    model: VisionTransformer,
    items: Iterable[T],
    size: Callable[[T], tuple[int, int]],
    read: Callable[[T], Pillow.Image],
    p: affinity.Mining,
    patch: int,
) -> Iterator[tuple[T, np.ndarray]]:
    """Each item and its first object's mask [H, W] bool; arguments as in `load_batches`."""
    single = replace(p, objects=1)
    for item, (mask,) in objects(model, load_batches(items, size, read, single, patch), size, single, patch):
        yield item, mask
