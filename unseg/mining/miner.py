"""Object masks of photographs, in batches of like shape: the ViT's last block, `affinity`, and back to pixels.

Shapes: H rows, W columns of a photograph at its original size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.backbones import vit
from unseg.console import Meter
from unseg.io import images, photos
from unseg.mining import affinity

PIXELS = 3_000_000  # of a batch
T = TypeVar("T")


@torch.inference_mode()
def masks(
    model: VisionTransformer,
    items: Sequence[T],
    size: Callable[[T], tuple[int, int]],
    read: Callable[[T], Pillow.Image],
    p: affinity.Mining,
    patch: int,
    left: Callable[[list[list[T]]], list[list[T]]] = list,
) -> Iterator[tuple[T, np.ndarray]]:
    """Each item and its object's mask [H, W] bool, in an order of shapes.

    Args:
        size: (H, W) of the photograph that `read` will return, told without reading it.
        read: picklable; runs in loader processes.
        patch: side of a patch, pixels.
        left: of all batches, those that are to be done here.
    """
    device = images.device()
    model = model.to(device)

    def padded(item: T) -> tuple[int, int]:
        h, w = photos.short_side(size(item), p.resize)
        return h + -h % patch, w + -w % patch

    def load(item: T) -> Tensor:
        small = photos.resize(read(item), photos.short_side(size(item), p.resize))
        return images.pad_to(images.to_tensor(small), patch)

    with Meter(len(items), "mine") as meter:
        for batch, pixels in images.batches_by_shape(items, padded, load, PIXELS, left):
            with images.autocast(device, p.precision):
                query, keys = vit.last_block(model, pixels.to(device))
            mined = affinity.mine(query.float(), keys.float(), p.keep, p.center, p.rank)
            grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
            for item, mask, source in zip(batch, mined.masks.cpu().numpy(), mined.source.tolist(), strict=True):
                patches = affinity.region_of(mask.reshape(grid), source) if p.component else mask.reshape(grid)
                yield item, affinity.to_pixels(patches, photos.short_side(size(item), p.resize), size(item), patch)
                meter.step()
