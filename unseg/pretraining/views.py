"""Two augmented views of an image, and where each of their patches lies in it (CrOC, arXiv:2303.13245; docs/spec/croc.md, 2).

Shapes: B images, S pixels a side of a view, N patches of a view (row-major).
"""

import random
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Interval, Len
from PIL import Image as Pillow
from PIL import ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as F

from unseg.core.image_index import ImageRecord
from unseg.core.params import Fraction, NonNegativeFloat, PositiveFraction, PositiveInt
from unseg.data import photos


class Views(NamedTuple):
    pixels: Tensor  # [B, 2, 3, S, S] uint8
    boxes_xywh: Tensor  # [B, 2, 4] float32, the crop in pixels of the original image
    flipped: Tensor  # [B, 2] bool


@dataclass(frozen=True)
class Augmentation:
    """The `croc.views` group of params.yaml."""

    size: PositiveInt  # S, pixels
    crop_min_scale: PositiveFraction  # smallest fraction of the image's area that a crop has
    jitter_prob: Fraction
    brightness: Fraction  # 0.4: factor from 0.6 to 1.4
    contrast: Fraction
    saturation: Fraction
    hue: Annotated[float, Interval(ge=0, le=0.5)]  # turns, either way
    grey_prob: Fraction
    blur_probs: Annotated[list[Fraction], Len(2, 2)]  # of the first and the second view
    blur: NonNegativeFloat  # largest sigma, pixels of the view
    solarise_probs: Annotated[list[Fraction], Len(2, 2)]


@dataclass(frozen=True)
class ViewPairs(Dataset[Any]):
    """Maps (index, seed) to the pixels [2, 3, S, S], crop boxes and flips of the two views of an image."""

    root: str
    records: list[ImageRecord]
    p: Augmentation

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[bool]]:
        index, seed = index_and_seed
        rng = random.Random(seed)
        image = photos.read(self.root, self.records[index])
        pixels, boxes, flips = [], [], []
        for view in (0, 1):
            x, y, w, h = box = random_crop_box(rng, image.size, self.p.crop_min_scale)
            crop = image.resize((self.p.size, self.p.size), Pillow.Resampling.BICUBIC, (x, y, x + w, y + h))
            flip = rng.random() < 0.5
            crop = colour_jitter(rng, ImageOps.mirror(crop) if flip else crop, self.p, view)
            pixels.append(np.asarray(crop).transpose(2, 0, 1))
            boxes.append(box)
            flips.append(flip)
        return np.stack(pixels), boxes, flips


def collate(items: list[Any]) -> Views:
    pixels, boxes, flips = zip(*items, strict=True)
    return Views(torch.from_numpy(np.stack(pixels)), torch.tensor(boxes, dtype=torch.float32), torch.tensor(flips))


def random_crop_box(rng: random.Random, size: tuple[int, int], min_scale: float) -> tuple[int, int, int, int]:
    """A random-resized crop xywh of an image of size (W, H): area fraction U(min_scale, 1), log-uniform ratio 3/4 to 4/3.

    If ten draws do not fit into the image: its largest central crop of an allowed ratio, with at least one pixel.
    """
    width, height = size
    for _ in range(10):
        area = rng.uniform(min_scale, 1) * width * height
        ratio = (4 / 3) ** rng.uniform(-1, 1)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    w = max(1, min(width, round(height * 4 / 3)))
    h = max(1, min(height, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


# On Pillow: torchvision.transforms.v2 takes 1.6 ms a pair of 48 pixels and 13.4 ms a pair of 224, this code 0.6 and 9.4 ms.
def colour_jitter(rng: random.Random, image: Pillow.Image, p: Augmentation, view: int) -> Pillow.Image:
    """BYOL's colours: jitter, grey, blur, solarisation, the last two with the probabilities of view 0 or 1."""
    if rng.random() < p.jitter_prob:
        changes = [
            (F.adjust_brightness, rng.uniform(1 - p.brightness, 1 + p.brightness)),
            (F.adjust_contrast, rng.uniform(1 - p.contrast, 1 + p.contrast)),
            (F.adjust_saturation, rng.uniform(1 - p.saturation, 1 + p.saturation)),
            (F.adjust_hue, rng.uniform(-p.hue, p.hue)),
        ]
        rng.shuffle(changes)
        for change, amount in changes:
            image = change(image, amount)
    if rng.random() < p.grey_prob:
        image = image.convert("L").convert("RGB")
    if rng.random() < p.blur_probs[view]:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(min(0.1, p.blur), p.blur)))
    if rng.random() < p.solarise_probs[view]:
        image = ImageOps.solarize(image, 128)
    return image


def positions(boxes_xywh: Tensor, flipped: Tensor, side: int) -> Tensor:
    """Centres of the patches, xy in pixels of the original image: [B, 2, N, 2] float32.

    Args:
        boxes_xywh: [B, 2, 4] crops, pixels.
        flipped: [B, 2] bool, mirrored left to right.
        side: patches a side of the view.
    """
    steps = (torch.arange(side, device=boxes_xywh.device, dtype=torch.float32) + 0.5) / side  # [side]
    across = torch.where(flipped[..., None], 1 - steps, steps)  # [B, 2, side]
    x = boxes_xywh[..., 0:1] + across * boxes_xywh[..., 2:3]  # [B, 2, side]
    y = boxes_xywh[..., 1:2] + steps * boxes_xywh[..., 3:4]  # [B, 2, side]
    grid = torch.stack([x[..., None, :].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], -1)
    return grid.flatten(2, 3)  # [B, 2, N, 2]
