"""Unsupervised segmentation: K-means on a ViT's patch tokens, clusters matched to classes (docs/spec/croc.md, 9.2).

K-means sees the tokens of the very images that it is judged on, background is a class like any other, and all of it is
repeated with several seeds: not the protocol of MaskDistill's scores.

Shapes: n images, S pixels a side, h x w tokens an image, M = n h w tokens, D channels, P components, C classes, K clusters.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer

from unseg.core.console import InputError, track
from unseg.engine import environment
from unseg.engine.precision import check_precision
from unseg.evaluation import metrics
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.sets import Example


@dataclass(frozen=True)
class BackboneKmeans:
    """The `backbone_kmeans` group of params.yaml."""

    size: int  # S
    grid: int  # labels a side that are compared
    components: int  # P, of the PCA
    clusters: int | None  # K; null: as many as classes. With more, clusters are given to classes many to one
    starts: int  # of each seed, of which the tightest is kept
    iterations: int
    seeds: int  # repetitions
    batch: int  # 60, published: what is left over of the images after whole batches is not judged; 1: all are
    precision: str  # fp32 | bf16 | auto, of the ViT

    def __post_init__(self) -> None:
        check_precision("backbone_kmeans.precision", self.precision)
        for name in ("components", "starts", "iterations", "seeds", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone_kmeans.{name} is {getattr(self, name)}; it must be at least 1")
        if self.clusters is not None and not 1 <= self.clusters <= metrics.LEVELS - 1:
            raise ValueError(f"backbone_kmeans.clusters is {self.clusters}; it must be from 1 to 255, or null")
        if not 1 <= self.grid <= self.size:
            raise ValueError(f"backbone_kmeans.grid is {self.grid}; it must be from 1 to size, {self.size}")


def judged(examples: list[Example], batch: int) -> list[Example]:
    """The first of the examples that fill whole batches: 1,440 of VOC's 1,449 for 60."""
    return examples[: len(examples) // batch * batch]


def gather(p: BackboneKmeans, model: VisionTransformer, examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Masks [n, grid, grid] uint8 and tokens [n, h, w, D] float32."""
    model.to(environment.device()).eval().requires_grad_(False)
    side = p.size // model.patch_embed.patch_size[0]
    masks = np.empty((len(examples), p.grid, p.grid), np.uint8)
    tokens = np.empty(
        (len(examples), side, side, model.embed_dim), np.float32
    )  # the largest thing here: 1.7 GB for VOC, ViT-S/16
    found = sets.every(model, examples, p.size, p.precision)
    for i, (mask, grid) in enumerate(track(found, "tokens", len(examples))):
        masks[i], tokens[i] = sets.thin(mask, p.grid), grid.permute(1, 2, 0).cpu().numpy()
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
    """IoU of each class [C], nan where it has no pixel.

    Args:
        labels: [n, h, w] uint8, clusters.
        masks: [n, grid, grid] uint8, classes, and 255 where there is none.
    """
    grid = masks.shape[1]
    at = np.arange(grid) * labels.shape[1] // grid  # nearest neighbour, as torch takes it
    enlarged = labels[:, at[:, None], at]  # [n, grid, grid]
    counts = metrics.confusion(masks.reshape(len(masks), -1), enlarged.reshape(len(masks), -1), classes, k)
    assignment = metrics.match(counts, by="iou") if k <= classes else metrics.majority(counts)
    return metrics.iou(metrics.rename(counts, assignment))
