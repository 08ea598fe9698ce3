"""The linear probe: a 1x1 convolution on a segmenter's frozen features (MaskDistill, A.2; docs/spec/maskdistill.md, B.6.2).

This is for evaluation only: the probe is trained on ground truth, and no other stage uses it.

Shapes: C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unseg.core.console import track
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.data import photos
from unseg.engine import environment
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast
from unseg.evaluation import metrics
from unseg.evaluation.probe import Schedule, fit_layer, new_layer
from unseg.segmentation import segmenter
from unseg.segmentation.crf import Crf, refine


@dataclass(frozen=True)
class Linear(Schedule):
    """The `linear` group of params.yaml."""

    crf: bool  # also score the probe's probabilities after a CRF (the `crf` group)


def train(
    p: Linear,
    net: segmenter.TrainedSegmenter,
    classes: int,
    root: str,
    images: list[ImageRecord],
    truth: LabelMaps,
    seed: int,
    checkpoint: Checkpoint,
) -> segmenter.TrainedSegmenter:
    """Replace the last layer by one that is trained for the classes; batch norm and dropout are in evaluation mode."""
    torch.manual_seed(seed)
    device = environment.device()
    layer = new_layer(net.model.head[-1].in_channels, classes).to(device)  # type: ignore[arg-type]
    net.model.to(device).eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        with autocast(device, net.precision):
            return net.model.features(x.to(device, memory_format=torch.channels_last))

    dataset = segmenter.SegmentationDataset(root, images, truth, net.size, (0.0, 0.0, IGNORE_LABEL))
    fit_layer(p, layer, features, dataset, seed, checkpoint)
    net.model.head[-1] = layer
    return segmenter.TrainedSegmenter(net.model, classes, net.size, net.precision)


def evaluate(
    net: segmenter.TrainedSegmenter, root: str, images: list[ImageRecord], truth: LabelMaps, q: segmenter.Predict, crf: Crf | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The confusions [C, C] of the images at their original sizes, without and, if there is a CRF, with it."""
    counts, refined = np.zeros((2, net.labels, net.labels), np.int64)
    batches = segmenter.load_batches(net, root, images, q)
    for image, p in track(segmenter.predict(net, batches), "evaluate", len(images)):
        counts += metrics.confusion(truth[image], p.argmax(0).cpu().numpy(), net.labels, net.labels)
        if crf is not None:
            labels = refine(p.float().cpu().numpy(), np.asarray(photos.read(root, image)), crf, environment.device())
            refined += metrics.confusion(truth[image], labels, net.labels, net.labels)
    return counts, None if crf is None else refined
