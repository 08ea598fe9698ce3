"""The picture of one object, cut out for its CLS token (MaskDistill, section 3.2: "the masked images")."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

from unseg.core.rle import Rle, boxes_xyxy, decode
from unseg.data import photos
from unseg.engine.precision import check_precision

REGIONS = ("masked", "box", "image")


@dataclass(frozen=True)
class Embedding:
    """The `embed` group of params.yaml."""

    # masked: the box, what is not the object blanked (paper) | box: all of it (published code) | image: the whole image, blanked
    region: str
    resize: int  # shorter side of the crop, pixels; 0 leaves it at its size
    longest: int  # longer side at the most, pixels: a sliver would else grow huge
    precision: str  # fp32 | bf16 | auto, of the ViT

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise ValueError(f"embed.region is {self.region!r}; it must be one of {', '.join(REGIONS)}")
        if self.resize < 0 or self.longest < 1:
            raise ValueError("embed.resize must be at least 0 and embed.longest at least 1 pixel")
        check_precision("embed.precision", self.precision)


def box_of(rle: Rle, p: Embedding) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is cut out, pixels, right and bottom exclusive; at least one pixel."""
    height, width = rle["size"]
    if p.region == "image":
        return 0, 0, width, height
    x0, y0, x1, y1 = boxes_xyxy([rle])[0]
    left, top = min(math.floor(x0), width - 1), min(math.floor(y0), height - 1)
    return left, top, max(math.ceil(x1), left + 1), max(math.ceil(y1), top + 1)


def size_of(rle: Rle, p: Embedding) -> tuple[int, int]:
    """(H, W) of the crop, resized."""
    left, top, right, bottom = box_of(rle, p)
    h, w = size = (bottom - top, right - left)
    if p.resize:
        h, w = photos.short_side(size, p.resize)
    scale = min(1.0, p.longest / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def cut(image: Pillow.Image, rle: Rle, p: Embedding, fill: tuple[int, int, int]) -> Pillow.Image:
    """The object's crop, RGB, resized; blanked with `fill` where `p.region` says so."""
    box, size = box_of(rle, p), size_of(rle, p)
    if p.region != "box":
        pixels = np.array(image)
        pixels[~decode(rle)] = fill
        image = Pillow.fromarray(pixels)
    return photos.resize(image.crop(box), size)
