"""Mine the objects of photographs: batches of one shape, facets of the ViT, a method, and masks of pixels [H, W]."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.batching import Batches
from unseg.engine.precision import autocast
from unseg.mining import affinity, averaging, foreground, methods
from unseg.models import vit
from unseg.models.vit import ViT

PIXELS = 3_000_000  # of a batch
T = TypeVar("T")
Size = Callable[[T], tuple[int, int]]  # (H, W) of an item's photograph, computed without reading it


def load_batches(
    model: ViT, items: Iterable[T], size: Size[T], read: Callable[[T], Pillow.Image], p: affinity.Mining
) -> Batches[T]:
    """Batches for the ViT: photographs resized to p.resize, normalised, padded to whole patches. Loader processes run `read`."""
    patch, (mean, std) = vit.patch_size(model), vit.normalisation(model)

    def padded_size(item: T) -> tuple[int, int]:
        h, w = photos.short_side(size(item), p.resize)
        return h + -h % patch, w + -w % patch

    def load(item: T) -> Tensor:
        resized = photos.resize(read(item), photos.short_side(size(item), p.resize))
        return batching.pad_to(batching.to_tensor(resized, mean, std), patch)

    return batching.batches_by_shape(items, padded_size, load, averaging.pixels(p, PIXELS))


@torch.inference_mode()
def mine_objects(
    model: ViT, batches: Iterable[tuple[list[T], Tensor]], size: Size[T], p: affinity.Mining
) -> Iterator[tuple[T, list[np.ndarray]]]:
    """Each item of the batches and the masks [H, W] bool of its objects, in the order in which they are mined.

    Raises InputError if p.head is no head for this ViT.
    """
    device, patch = environment.device(), vit.patch_size(model)
    model = model.to(device)
    head = foreground.load(p.head, model).to(device) if p.method == "head" else None
    for items, pixels in batches:
        with autocast(device, p.precision):
            read = averaging.read(model, pixels.to(device), p)
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        for item, masks in zip(items, methods.mine_batch(read, grid, p, head), strict=True):
            resized = photos.short_side(size(item), p.resize)
            yield item, [affinity.to_pixels(mask, resized, size(item), patch) for mask in masks]


def mine_first_object(
    model: ViT, items: Iterable[T], size: Size[T], read: Callable[[T], Pillow.Image], p: affinity.Mining
) -> Iterator[tuple[T, np.ndarray]]:
    """Each item and the mask [H, W] bool of its first object; arguments as in `load_batches`."""
    single = replace(p, objects=1)
    for item, (mask,) in mine_objects(model, load_batches(model, items, size, read, single), size, single):
        yield item, mask
