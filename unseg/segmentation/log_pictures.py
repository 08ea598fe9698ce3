"""Pictures of a segmenter in training, for TensorBoard: pseudo-labels (left) and predictions (right) over photographs."""

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from unseg.core.colours import overlay, palette
from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.label_maps import LabelMaps
from unseg.data.photos import read, resize
from unseg.engine.event_log import IMAGES, SIDE, Draw


def drawing(
    root: str,
    images: list[ImageRecord],
    labels: LabelMaps,
    k: int,
    load: Callable[[int], Tensor],
    logits: Callable[[Tensor], Tensor],
) -> Draw:
    """A function that draws IMAGES of the images, always the same, at SIDE x SIDE.

    Args:
        load: an image's input of the network, [1, ...], by its index in `images`; not augmented.
        logits: of such an input, [1, C, h, w]. It is called in evaluation mode.
    """

    colours = palette(k)

    @cache
    def loaded(index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        photo = np.asarray(resize(read(root, images[index]), (SIDE, SIDE)))
        targets = cv2.resize(labels[images[index]], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST_EXACT)
        return photo, overlay(photo, targets, colours), load(index)

    def draw() -> dict[str, np.ndarray]:
        pictures = {}
        for index in evenly_spaced(range(len(images)), IMAGES):
            photo, left, x = loaded(index)
            full = F.interpolate(logits(x).float(), (SIDE, SIDE), mode="bilinear", align_corners=False)
            prediction = full[0].argmax(0).byte().cpu().numpy()
            pictures[images[index].file_name] = np.concatenate([left, overlay(photo, prediction, colours)], 1)
        return pictures

    return draw
