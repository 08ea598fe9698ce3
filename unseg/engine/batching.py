"""Photographs into tensors: one way of normalising and batching them for all stages. `unseg.data.photos` opens them.

Shapes: B images, H rows, W columns; p the side of a patch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unseg.engine import environment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in RGB, of values in 0..1
T = TypeVar("T")


def to_tensor(image: Pillow.Image | np.ndarray) -> Tensor:
    """[3, H, W] float32, normalised by ImageNet's mean and standard deviation."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (pixels - mean) / std


def pad_to(tensor: Tensor, multiple: int) -> Tensor:
    """[3, H, W] with zeros (the mean colour) added at the bottom and right up to a multiple."""
    h, w = tensor.shape[-2:]
    return torch.nn.functional.pad(tensor, (0, -w % multiple, 0, -h % multiple))


class _Loaded(Dataset[Any]):
    """A dataset whose indices are the items themselves."""

    def __init__(self, load: Callable[[Any], Tensor]) -> None:
        self.load = load

    def __getitem__(self, item: Any) -> Tensor:
        return self.load(item)


@dataclass(frozen=True)
class Batches(Generic[T]):
    """Items in batches; iterating loads them: a list of items and their tensors [B, 3, H, W].

    plan: the items of each batch.
    load: picklable; runs in loader processes.
    """

    plan: list[list[T]]
    load: Callable[[T], Tensor]

    def __iter__(self) -> Iterator[tuple[list[T], Tensor]]:
        loader = DataLoader(_Loaded(self.load), batch_sampler=self.plan, num_workers=environment.workers())
        yield from zip(self.plan, loader, strict=True)

    def __len__(self) -> int:
        """The number of items."""
        return sum(map(len, self.plan))


def batches_by_shape(
    items: Iterable[T], shape: Callable[[T], tuple[int, int]], load: Callable[[T], Tensor], pixels: int
) -> Batches[T]:
    """Batches of items whose tensors have the same shape, so that no item is padded for another.

    Args:
        items: what to load, e.g. image records.
        shape: (H, W) that `load` will return for an item, computed without loading it.
        pixels: a batch holds at most this many, and at least one item.

    Returns:
        Batches in the order of their shapes. The tensor of an item does not depend on the other items.
    """
    groups: dict[tuple[int, int], list[T]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    plan: list[list[T]] = []
    for size, members in sorted(groups.items()):
        count = max(1, pixels // math.prod(size))
        plan += [members[k : k + count] for k in range(0, len(members), count)]
    return Batches(plan, load)
