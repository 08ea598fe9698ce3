"""Train a 1x1 convolution on frozen features: shared code of the linear probes of a segmenter and of a ViT.

This is for evaluation only: the probe is trained on ground truth, and no other stage uses it.

Shapes: B images, S pixels a side, D channels of a feature, h x w features, H x W labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.params import NonNegativeFloat, PositiveFloat, PositiveInt
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class Schedule:
    """The schedule of a probe: `head` in the group backbone_linear of params.yaml, and most of the group linear."""

    epochs: PositiveInt
    lr_milestone: Annotated[int, Ge(0)]  # last epoch, counted from 0, with the full lr; then lr / 10
    batch: PositiveInt
    lr: PositiveFloat
    momentum: NonNegativeFloat
    weight_decay: NonNegativeFloat


def new_layer(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def fit_layer(
    p: Schedule,
    layer: nn.Conv2d,
    features: Callable[[Tensor], Tensor],
    dataset: Dataset[Any],
    seed: int,
    checkpoint: Checkpoint,
) -> None:
    """Train the layer with SGD on the mean cross-entropy of the labelled pixels.

    Args:
        features: frozen, [B, 3, S, S] to [B, D, h, w].
        dataset: maps (index, seed) to an image [3, S, S] and its labels [H, W] int64. Logits are resized to the label
            size (bilinear; for a 1x1 convolution, resizing the features would give the same result).
    """
    device = layer.weight.device
    optimizer = torch.optim.SGD(layer.parameters(), lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    per_epoch = training.steps_per_epoch(len(dataset), p.batch)  # type: ignore[arg-type]

    def step(number: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        training.set_lr(optimizer, training.step_decay(p.lr, p.lr_milestone, number // per_epoch))
        labels = batch[1].to(device)
        with torch.no_grad():
            x = features(batch[0]).float()
        logits = F.interpolate(layer(x), labels.shape[-2:], mode="bilinear", align_corners=False)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")
        loss = losses / (labels != IGNORE_LABEL).sum().clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    state = {"layer": layer, "optimizer": optimizer}
    training.fit("linear probe", checkpoint, state, dataset, p.batch, p.epochs * per_epoch, seed, step)
