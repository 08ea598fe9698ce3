"""Photographs to normalised tensors in batches, the same way in all stages. `unseg.data.photos` opens the files.

Shapes: B images, H rows, W columns.
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

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: RGB, values 0..1
T = TypeVar("T")


def to_tensor(image: Pillow.Image | np.ndarray, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """[3, H, W] float32, normalised by the mean and standard deviation of RGB values 0..1; ImageNet's unless given."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float() / 255
    center, scale = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    return (pixels - center) / scale


def pad_to(tensor: Tensor, multiple: int) -> Tensor:
    """[3, H, W] padded at the bottom and right with zeros (the mean colour), so that both sides are multiples."""
    h, w = tensor.shape[-2:]
    return torch.nn.functional.pad(tensor, (0, -w % multiple, 0, -h % multiple))


class _ItemDataset(Dataset[Any]):
    """A dataset whose indices are the items."""

    def __init__(self, load: Callable[[Any], Tensor]) -> None:
        self.load = load

    def __getitem__(self, item: Any) -> Tensor:
        return self.load(item)


@dataclass(frozen=True)
class Batches(Generic[T]):
    """Items in batches; iteration loads each batch and yields its items and their tensors [B, 3, H, W]."""

    plan: list[list[T]]  # the items of each batch
    load: Callable[[T], Tensor]  # picklable, because it runs in loader processes

    def __iter__(self) -> Iterator[tuple[list[T], Tensor]]:
        loader = DataLoader(_ItemDataset(self.load), batch_sampler=self.plan, num_workers=environment.workers())
        yield from zip(self.plan, loader, strict=True)

    def __len__(self) -> int:
        """The number of items."""
        return sum(map(len, self.plan))


def batches_by_shape(
    items: Iterable[T], shape: Callable[[T], tuple[int, int]], load: Callable[[T], Tensor], pixels: int
) -> Batches[T]:
    """Batches of items whose tensors have the same shape, so that none is padded. They are ordered by shape.

    Args:
        shape: (H, W) of an item's tensor, computed without loading it.
        pixels: of a batch, at most; a batch has at least one item.
    """
    groups: dict[tuple[int, int], list[T]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    plan: list[list[T]] = []
    for size, members in sorted(groups.items()):
        count = max(1, pixels // math.prod(size))
        plan += [members[k : k + count] for k in range(0, len(members), count)]
    return Batches(plan, load)
