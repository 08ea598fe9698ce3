"""The linear probe: a 1x1 convolution on a segmenter's frozen features (MaskDistill, A.2; docs/spec/maskdistill.md, B.6.2).

This is evaluation: it learns from ground truth, and nothing learns from it.

Shapes: B images, S pixels a side, C classes.
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
from unseg.evaluation.probe import Schedule, fit_layer, fresh_layer
from unseg.segmentation import segmenter
from unseg.segmentation.crf import Crf, refine


@dataclass(frozen=True)
class Linear(Schedule):
    """The `linear` group of params.yaml."""

    crf: bool  # judge also what a CRF (the `crf` group) makes of the probe's probabilities


def probe(
    p: Linear,
    net: segmenter.TrainedSegmenter,
    classes: int,
    root: str,
    learned: list[ImageRecord],
    truth: LabelMaps,
    seed: int,
    checkpoint: Checkpoint,
) -> segmenter.TrainedSegmenter:
    """Train a new last layer for the classes; all else stays as it is, batch norm and dropout in evaluation mode."""
    torch.manual_seed(seed)
    device = environment.device()
    layer = fresh_layer(net.model.head[-1].in_channels, classes).to(device)  # type: ignore[arg-type]
    net.model.to(device).eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        with autocast(device, net.precision):
            return net.model.features(x.to(device, memory_format=torch.channels_last))

    dataset = segmenter.SegmentationDataset(root, learned, truth, net.size, (0.0, 0.0, IGNORE_LABEL))
    fit_layer(p, layer, features, dataset, len(learned), seed, checkpoint)
    net.model.head[-1] = layer
    return segmenter.TrainedSegmenter(net.model, classes, net.size, net.precision)


def judge(
    net: segmenter.TrainedSegmenter, root: str, judged: list[ImageRecord], truth: LabelMaps, q: segmenter.Predict, crf: Crf | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The confusions [C, C] of the judged images at their own sizes: as they are, and, where there is one, after the CRF."""
    counts, refined = np.zeros((2, net.labels, net.labels), np.int64)
    for image, p in track(segmenter.every_probability(net, segmenter.load_batches(net, root, judged, q)), "judge", len(judged)):
        counts += metrics.confusion(truth[image], p.argmax(0).cpu().numpy(), net.labels, net.labels)
        if crf is not None:
            labels = refine(p.float().cpu().numpy(), np.asarray(photos.read(root, image)), crf, environment.device())
            refined += metrics.confusion(truth[image], labels, net.labels, net.labels)
    return counts, None if crf is None else refined
