"""Unsupervised segmentation: K-means on a ViT's patch tokens, clusters matched to classes (docs/spec/croc.md, 9.2).

Unlike in MaskDistill's scores, K-means is fitted to the tokens of the evaluation images, background is a class like any
other, and the score is the mean over several seeds.

Shapes: n images, S pixels a side, h x w tokens an image, M = n h w tokens, D channels, P components, C classes, K clusters.
"""

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from unseg.core.console import InputError, track
from unseg.core.params import PositiveInt, Precision
from unseg.engine import environment
from unseg.evaluation import metrics
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.sets import Example
from unseg.models import vit
from unseg.models.vit import ViT


@dataclass(frozen=True)
class BackboneKmeans:
    """The `backbone_kmeans` group of params.yaml."""

    size: PositiveInt  # S
    grid: PositiveInt  # labels a side that are compared
    components: PositiveInt  # P, of the PCA
    clusters: Annotated[int, Interval(ge=1, le=255)] | None  # K; null: C. If K > C, clusters get classes many to one
    starts: PositiveInt  # of each seed; the tightest is kept
    iterations: PositiveInt
    seeds: PositiveInt  # repetitions
    batch: PositiveInt  # published: 60, whose last, incomplete batch is left out; 1: all images
    precision: Precision  # of the ViT

    def __post_init__(self) -> None:
        if self.grid > self.size:
            raise ValueError(f"backbone_kmeans.grid is {self.grid}; it must be at most backbone_kmeans.size, {self.size}")


def whole_batches(examples: list[Example], batch: int) -> list[Example]:
    """The examples without the last, incomplete batch: for batches of 60, 1,440 of VOC's 1,449."""
    return examples[: len(examples) // batch * batch]


def read_tokens(p: BackboneKmeans, model: ViT, examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Masks [n, grid, grid] uint8 and tokens [n, h, w, D] float32 (1.7 GB for VOC and a ViT-S/16)."""
    model.to(environment.device()).eval().requires_grad_(False)
    side = p.size // vit.patch_size(model)
    masks = np.empty((len(examples), p.grid, p.grid), np.uint8)
    tokens = np.empty((len(examples), side, side, model.embed_dim), np.float32)
    pairs = sets.masks_and_tokens(model, examples, p.size, p.precision)
    for i, (mask, x) in enumerate(track(pairs, "tokens", len(examples))):
        masks[i], tokens[i] = sets.subsample(mask, p.grid), x.permute(1, 2, 0).cpu().numpy()
    return masks, tokens


def reduce(tokens: np.ndarray, components: int) -> np.ndarray:
    """[M, D] to [M, P]: each channel to mean 0 and deviation 1, then PCA; `tokens` is overwritten."""
    scaled = StandardScaler(copy=False).fit_transform(tokens)
    pca = PCA(min(components, *tokens.shape), svd_solver="covariance_eigh")
    return np.asarray(pca.fit_transform(scaled), np.float32)


def cluster(p: BackboneKmeans, reduced: np.ndarray, k: int, seed: int) -> np.ndarray:
    """[M, P] to the cluster of each token, [M] uint8."""
    if len(reduced) < k:
        raise InputError(
            f"params.yaml: backbone_kmeans.clusters: {len(reduced)} tokens cannot make {k} clusters; give more images"
        )
    model = KMeans(k, init="random", n_init=p.starts, max_iter=p.iterations, tol=0, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different tokens than clusters: some stay empty
        return np.asarray(model.fit_predict(reduced), np.uint8)


def score(labels: np.ndarray, masks: np.ndarray, classes: int, k: int) -> np.ndarray:
    """IoU of each class [C], nan without pixels; clusters [n, h, w] uint8, and masks [n, grid, grid] uint8 with 255 for void."""
    predictions = sets.subsample(labels, masks.shape[1])  # [n, grid, grid]
    counts = metrics.confusion(masks.reshape(len(masks), -1), predictions.reshape(len(masks), -1), classes, k)
    assignment = metrics.match(counts, by="iou") if k <= classes else metrics.majority(counts)
    return metrics.iou(metrics.clusters_to_classes(counts, assignment))
