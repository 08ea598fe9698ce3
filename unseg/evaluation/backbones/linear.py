"""Linear segmentation: how far a ViT's frozen patch tokens tell classes apart (docs/spec/croc.md, 9.1).

This is evaluation: it learns from ground truth, and nothing learns from it.

Shapes: B images, S pixels a side, C classes, h x w tokens.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.console import track
from unseg.engine import batching, environment
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import check_precision
from unseg.evaluation import metrics
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.sets import Example
from unseg.evaluation.probe import Schedule, fit_layer, fresh_layer
from unseg.pretraining import views


@dataclass(frozen=True)
class BackboneLinear:
    """The `backbone_linear` group of params.yaml."""

    size: int  # S
    crop_min_scale: float  # share of the photograph's area that a training crop has at least
    grid: int  # labels a side in training
    precision: str  # fp32 | bf16 | auto, of the ViT
    head: Schedule

    def __post_init__(self) -> None:
        check_precision("backbone_linear.precision", self.precision)
        if not 0 < self.crop_min_scale <= 1:
            raise ValueError(f"backbone_linear.crop_min_scale is {self.crop_min_scale}; it must be above 0 and at most 1")
        if not 1 <= self.grid <= self.size:
            raise ValueError(f"backbone_linear.grid is {self.grid}; it must be from 1 to size, {self.size}")


@dataclass(frozen=True)
class Crops(Dataset[Any]):
    """(index, seed) to a random-resized crop [3, S, S] and its labels [grid, grid] int64."""

    examples: list[Example]
    p: BackboneLinear

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        rng = random.Random(seed)
        photo, mask = sets.both(self.examples[index])
        x, y, w, h = views.random_crop_box(rng, photo.size, self.p.crop_min_scale)
        box, square = (x, y, x + w, y + h), (self.p.size, self.p.size)
        photo = photo.resize(square, Pillow.Resampling.BILINEAR, box)
        mask = mask.resize(square, Pillow.Resampling.NEAREST, box)
        if rng.random() < 0.5:
            photo, mask = ImageOps.mirror(photo), ImageOps.mirror(mask)
        labels = sets.thin(np.array(mask), self.p.grid)
        return batching.to_tensor(photo), torch.from_numpy(labels.astype(np.int64))


def learn(
    p: BackboneLinear, model: VisionTransformer, classes: int, examples: list[Example], seed: int, checkpoint: Checkpoint
) -> nn.Conv2d:
    """Train the layer; the ViT stays as it is."""
    torch.manual_seed(seed)
    device = environment.device()
    model.to(device).eval().requires_grad_(False)
    layer = fresh_layer(model.embed_dim, classes).to(device)
    dataset = Crops(examples, p)
    fit_layer(p.head, layer, lambda x: sets.tokens(model, x.to(device), p.precision), dataset, len(dataset), seed, checkpoint)
    return layer


@torch.no_grad()
def judge(p: BackboneLinear, model: VisionTransformer, layer: nn.Conv2d, examples: list[Example]) -> np.ndarray:
    """The confusion [C, C] over all pixels of the examples as S x S squares."""
    classes = layer.out_channels
    counts = np.zeros((classes, classes), np.int64)
    for mask, found in track(sets.every(model, examples, p.size, p.precision), "judge", len(examples)):
        logits = F.interpolate(layer(found[None]), mask.shape, mode="bilinear", align_corners=False)[0]  # [C, S, S]
        counts += metrics.confusion(mask, logits.argmax(0).cpu().numpy(), classes, classes)
    return counts


def part_of(examples: list[Example], share: float, seed: int) -> list[Example]:
    """A random share of the examples, one at least, in their order."""
    count = max(1, round(share * len(examples)))
    chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[i] for i in sorted(chosen)]
