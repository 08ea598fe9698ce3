"""Linear segmentation: how well a linear layer tells classes apart by a ViT's frozen patch tokens (docs/spec/croc.md, 9.1).

This is for evaluation only: the probe is trained on ground truth, and no other stage uses it.

Shapes: S pixels a side, C classes.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.console import track
from unseg.core.params import PositiveFraction, PositiveInt, Precision
from unseg.engine import batching, environment
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import metrics
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.sets import Example
from unseg.evaluation.probe import Schedule, fit_layer, new_layer
from unseg.models import vit
from unseg.models.vit import ViT
from unseg.pretraining import views


@dataclass(frozen=True)
class BackboneLinear:
    """The `backbone_linear` group of params.yaml."""

    size: PositiveInt  # S
    crop_min_scale: PositiveFraction  # of the photograph's area that a training crop has at least
    grid: PositiveInt  # labels a side in training
    precision: Precision  # of the ViT
    head: Schedule

    def __post_init__(self) -> None:
        if self.grid > self.size:
            raise ValueError(f"backbone_linear.grid is {self.grid}; it must be at most backbone_linear.size, {self.size}")


@dataclass(frozen=True)
class CropDataset(Dataset[Any]):
    """(index, seed) to a random-resized crop [3, S, S] and its labels [grid, grid] int64."""

    examples: list[Example]
    p: BackboneLinear
    mean: tuple[float, ...]  # of the ViT's input
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        rng = random.Random(seed)
        photo, mask = sets.read_pair(self.examples[index])
        x, y, w, h = views.random_crop_box(rng, photo.size, self.p.crop_min_scale)
        box, square = (x, y, x + w, y + h), (self.p.size, self.p.size)
        photo = photo.resize(square, Pillow.Resampling.BILINEAR, box)
        mask = mask.resize(square, Pillow.Resampling.NEAREST, box)
        if rng.random() < 0.5:
            photo, mask = ImageOps.mirror(photo), ImageOps.mirror(mask)
        labels = sets.subsample(np.array(mask), self.p.grid)
        return batching.to_tensor(photo, self.mean, self.std), torch.from_numpy(labels.astype(np.int64))


def train(p: BackboneLinear, model: ViT, classes: int, examples: list[Example], seed: int, checkpoint: Checkpoint) -> nn.Conv2d:
    """Train the layer on the frozen ViT."""
    torch.manual_seed(seed)
    device = environment.device()
    model.to(device).eval().requires_grad_(False)
    layer = new_layer(model.embed_dim, classes).to(device)

    def features(x: Tensor) -> Tensor:
        return sets.extract_tokens(model, x.to(device), p.precision)

    fit_layer(p.head, layer, features, CropDataset(examples, p, *vit.normalisation(model)), seed, checkpoint)
    return layer


@torch.no_grad()
def evaluate(p: BackboneLinear, model: ViT, layer: nn.Conv2d, examples: list[Example]) -> np.ndarray:
    """The confusion [C, C] over all pixels of the examples as S x S squares."""
    classes = layer.out_channels
    counts = np.zeros((classes, classes), np.int64)
    for mask, tokens in track(sets.masks_and_tokens(model, examples, p.size, p.precision), "evaluate", len(examples)):
        logits = F.interpolate(layer(tokens[None]), mask.shape, mode="bilinear", align_corners=False)[0]  # [C, S, S]
        counts += metrics.confusion(mask, logits.argmax(0).cpu().numpy(), classes, classes)
    return counts


def random_subset(examples: list[Example], fraction: float, seed: int) -> list[Example]:
    """A random fraction of the examples, at least one, in their order."""
    count = max(1, round(fraction * len(examples)))
    chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[i] for i in sorted(chosen)]
