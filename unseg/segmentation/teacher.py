"""The teacher of a self-training round: a segmenter whose labels of the train images train the next one.

Its probabilities are averaged over the mirror image and over scales (CUPS, arXiv:2504.01955, self-training). Of each class the
same fraction of pixels is kept, those of highest confidence, so that a class of low confidence is not lost (class-balanced
self-training, CBST, arXiv:1810.07911). CBST gives a pixel the class whose probability is largest relative to the class's
threshold; here the label stays the most probable one, or the CRF's.

Shapes: B images, H rows, W columns; C labels (0 background, 1..K clusters).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor
from torch.nn import functional as F

from unseg.core import params
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.params import PositiveFloat, PositiveFraction
from unseg.segmentation import crf
from unseg.segmentation.crf import Crf
from unseg.segmentation.segmenter import TrainedSegmenter, probabilities

BINS = 256  # of confidence
MIN_LOGIT, MAX_LOGIT = -8.0, 16.0  # the bins are equal steps of the confidence's logit, because most confidences are close to 1


@dataclass(frozen=True)
class Relabel:
    """The `relabel` group of params.yaml; an item of `refine` may have its own values."""

    crf: bool  # refine the labels by the CRF (the `crf` group)
    flip: bool  # average over the photograph and its mirror image
    scales: Annotated[list[PositiveFloat], MinLen(1)]  # average over the photograph in these sizes; 1: as `predict.input` has it
    threshold: PositiveFraction | None  # fraction of each class's pixels that is kept; None: all


def of_round(p: Relabel, refine: list[Any], to: str) -> Relabel:
    """The settings of the round `to`: `relabel`, with the values of the round's item of `refine` in their place.

    Raises InputError if `refine` has no such item, or for a value out of range.
    """
    for i, item in enumerate(refine):
        if isinstance(item, dict) and item.get("to") == to:
            changes = {key: x for key, x in item.items() if key not in ("from", "to")}
            merged: Relabel = params.check(f"refine[{i}]", Relabel, {**vars(p), **changes}, params.FILE)
            return merged
    raise InputError(f"{params.FILE}: refine has no item whose `to` is {to}; add {{from: r0, to: {to}}}")


@torch.inference_mode()
def average(net: TrainedSegmenter, x: Tensor, flip: bool, scales: Sequence[float]) -> Tensor:
    """Mean probabilities [B, C, H, W] of x [B, 3, H, W] over its scales and, with flip, their mirror images.

    The probabilities of each are resized to H x W and mirrored back first.
    """
    height, width = x.shape[-2:]
    sums: Tensor | None = None
    for scale in scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        view = x if size == (height, width) else F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        p = probabilities(net, view)
        if flip:
            p = (p + probabilities(net, view.flip(3)).flip(3)) / 2
        if size != (height, width):
            p = F.interpolate(p, (height, width), mode="bilinear", align_corners=False)
        sums = p if sums is None else sums + p
    assert sums is not None
    return sums / len(scales)


def label(
    predictions: Iterable[tuple[ImageRecord, Tensor]],
    photo: Callable[[ImageRecord], np.ndarray],
    p: Relabel,
    c: Crf,
    count: int,
    device: torch.device,
) -> Iterator[tuple[ImageRecord, np.ndarray]]:
    """Yield each of `count` images with its labels [H, W] uint8; with p.threshold [2 H, W], the bins of their confidence below.

    predictions: images with their probabilities [C, H, W]. photo: reads an image, [H, W, 3] uint8, for the CRF.
    The confidence of a label is its probability before the CRF.
    """  # fmt: skip
    waiting: dict[str, tuple[ImageRecord, np.ndarray | None]] = {}  # as many as the CRF holds

    def items() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for image, tensor in predictions:
            x = tensor.float().cpu().numpy()
            waiting[image.file_name] = image, None if p.threshold is None else x
            yield image.file_name, x, photo(image) if p.crf else x

    plain = ((name, x.argmax(0).astype(np.uint8)) for name, x, _ in items())
    for name, labels in crf.refine_all(items(), c, count, device) if p.crf else plain:
        image, kept = waiting.pop(name)
        yield image, labels if kept is None else np.concatenate([labels, confidence_bins(kept, labels)])


def confidence_bins(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The bins [H, W] uint8 of the probabilities that p [C, H, W] float32 gives to labels [H, W] uint8."""
    confidence = np.take_along_axis(p, labels[None].astype(np.int64), 0)[0].clip(1e-7, 1 - 2**-24)
    logit = np.log(confidence) - np.log1p(-confidence)
    return np.asarray(((logit - MIN_LOGIT) * (BINS / (MAX_LOGIT - MIN_LOGIT))).clip(0, BINS - 1), np.uint8)


def class_thresholds(results: Iterable[np.ndarray], fraction: float) -> np.ndarray:
    """The lowest bin [256] that is kept of each label, from all results [2 H, W] of `label`.

    The highest one above which at least that fraction of the label's pixels lie, over all images. A bin is kept as a whole.
    """
    histogram = np.zeros(256 * BINS, np.int64)
    for result in results:
        labels, bins = np.split(result, 2)
        histogram += np.bincount(labels.ravel() * np.int64(BINS) + bins.ravel(), minlength=len(histogram))
    above = histogram.reshape(256, BINS)[:, ::-1].cumsum(1)[:, ::-1]  # pixels of this bin or a higher one
    return np.asarray((above >= fraction * above[:, :1]).sum(1) - 1)


def keep_confident(result: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """A result [2 H, W] of `label` to labels [H, W]; those of a bin below their label's threshold are ignored."""
    labels, bins = np.split(result, 2)
    return np.where(bins < thresholds[labels], IGNORE_LABEL, labels).astype(np.uint8)
