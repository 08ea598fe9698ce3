"""Pictures of a detector in training, for TensorBoard: the masks that it learns (left) and its detections (right)."""

from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from unseg.core.colours import overlay, palette
from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.instances import Detection, Instance
from unseg.data.photos import read, resize, short_side
from unseg.detection.examples import Objects
from unseg.engine.event_log import IMAGES, SIDE, Draw


def drawing(
    root: str,
    images: list[ImageRecord],
    objects: Objects,
    k: int,
    short: int,
    detect: Callable[[Sequence[Tensor]], list[list[Detection]]],
) -> Draw:
    """A function that draws IMAGES of the images, always the same, at SIDE x SIDE.

    Args:
        short: shorter side of what the detector sees, pixels.
        detect: the detections in each photograph [1, 3, H, W] uint8, highest score first. It is called in evaluation mode.
    """
    colours, chosen = palette(k), evenly_spaced(images, IMAGES)

    def painted(photo: np.ndarray, objects: Sequence[Instance | Detection]) -> np.ndarray:
        """The masks over a photograph [SIDE, SIDE, 3], the first on top."""
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for o in reversed(objects):
            mask = cv2.resize(o.mask.decode().astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST_EXACT)
            labels[mask > 0] = o.category_id + 1
        return overlay(photo, labels, colours)

    @cache
    def loaded(image: ImageRecord) -> tuple[np.ndarray, np.ndarray, Tensor]:
        pixels = read(root, image)
        photo = np.asarray(resize(pixels, (SIDE, SIDE)))
        small = np.array(resize(pixels, short_side(image.size, short)))
        return photo, painted(photo, objects.get(image.id, [])), torch.from_numpy(small).permute(2, 0, 1)[None]

    def draw() -> dict[str, np.ndarray]:
        photos, left, inputs = zip(*map(loaded, chosen), strict=True)
        right = [painted(photo, found) for photo, found in zip(photos, detect(inputs), strict=True)]
        names = [image.file_name for image in chosen]
        return {name: np.concatenate(pair, 1) for name, *pair in zip(names, left, right, strict=True)}

    return draw
