"""The linear probe: a 1x1 convolution on a segmenter's frozen features (MaskDistill, A.2; specification B.6.2).

This is evaluation: it learns from ground truth, and nothing learns from it.

Shapes: B images, S pixels a side, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unseg import training
from unseg.console import track
from unseg.evaluation import metrics
from unseg.io import images, photos
from unseg.io.records import VOID, Image, Labels
from unseg.segmentation import segmenter
from unseg.segmentation.labels import Crf, refine


@dataclass(frozen=True)
class Linear:
    """The `linear` group of params.yaml."""

    epochs: int
    drop_epoch: int  # the last epoch, counted from 0, at the full lr; a tenth of it after that
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    crf: bool  # judge also what a CRF (the `crf` group) makes of the probe's probabilities


def probe(
    p: Linear,
    net: segmenter.Trained,
    classes: int,
    root: str,
    learned: list[Image],
    truth: Labels,
    seed: int,
    scratch: training.Scratch,
) -> segmenter.Trained:
    """Train a new last layer for the classes; all else stays as it is, batch norm and dropout in evaluation mode."""
    torch.manual_seed(seed)
    device = images.device()
    layer = nn.Conv2d(net.model.head[-1].in_channels, classes, 1)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    net.model.to(device).eval().requires_grad_(False)
    layer.to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    per_epoch = training.steps_per_epoch(len(learned), p.batch)

    def step(number: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        training.set_rates(optimizer, training.dropped(p.lr, p.drop_epoch, number // per_epoch))
        x, labels = batch[0].to(device, memory_format=torch.channels_last), batch[1].to(device)
        with torch.no_grad(), images.autocast(device, net.precision):
            features = net.model.features(x)
        logits = F.interpolate(layer(features.float()), labels.shape[-2:], mode="bilinear", align_corners=False)
        losses = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
        loss = losses / (labels != VOID).sum().clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    dataset = segmenter.Examples(root, learned, truth, net.size, (0.0, 0.0, VOID))
    state = {"layer": layer, "optimizer": optimizer}
    training.fit("linear probe", scratch, state, dataset, p.batch, p.epochs * per_epoch, seed, step)
    net.model.head[-1] = layer
    return segmenter.Trained(net.model, classes, net.size, net.precision)


def judge(
    net: segmenter.Trained, root: str, judged: list[Image], truth: Labels, q: segmenter.Predict, crf: Crf | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The confusions [C, C] of the judged images at their own sizes: as they are, and, where there is one, after the CRF."""
    counts, refined = np.zeros((2, net.labels, net.labels), np.int64)
    for image, p in track(segmenter.every_probability(net, root, judged, q), "judge", len(judged)):
        counts += metrics.confusion(truth[image], p.argmax(0).cpu().numpy(), net.labels, net.labels)
        if crf is not None:
            labels = refine(p.float().cpu().numpy(), np.asarray(photos.read(root, image)), crf)
            refined += metrics.confusion(truth[image], labels, net.labels, net.labels)
    return counts, None if crf is None else refined
