"""Several regions of an image at once, without eigenvectors: neighbouring patches are merged from the most similar ones on.

In the manner of UniAP (S2-UniSeg, arXiv:2508.06995), "universal agglomerative pooling": each of its layers groups similar
neighbours in parallel, from fine to coarse. Only its abstract was within reach; the weights 0.6 and 0.4 are the issue's account
of it, and the rest is ours. The regions start as patches. Two regions that touch have the similarity 0.6 x the cosine of their
mean features + 0.4 x the cosine of their mean rows of the affinity matrix A, i.e. of what they resemble in the whole image. At
each of the falling thresholds all touching regions above it are merged, until none is left.

A row of A = F F^T (F the features of length 1, [N, D]) of a region of mean m is F m, so that the cosine of two such rows is that
of their means in the metric C = F^T F, [D, D]: N x N numbers are never computed.

Background is told from objects by the boundary connectivity of Zhu et al. (CVPR 2014, Eq. 2): the length of the image's border
that a region covers, over the square root of its area.

Shapes: N patches (row-major over a grid of rows x cols), D channels, R regions, E pairs of regions that touch.
"""

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from unseg.mining.affinity import Mining, affinity_rows, otsu, rank_patches

FEATURE_WEIGHT = 0.6  # of the features' cosine; the rest is the weight of the rows' cosine
START, STEP = 0.9, 0.05  # thresholds
BORDER = 2.0  # largest boundary connectivity of an object; half of an image has 2.8, a quarter in its corner 2


def mine(query: Tensor, keys: Tensor, features: Tensor, grid: tuple[int, int], p: Mining) -> list[np.ndarray]:
    """At most p.objects disjoint, 4-connected masks of patches [rows, cols] bool of one image, the most attended first.

    Regions whose boundary connectivity is above BORDER are left out, and those that hold no more of the CLS token's attention
    than their area would; if none remains, the most attended region of all is the only one.

    Args:
        query, keys, features: as in `affinity.mine`, with B = 1.
        p: center, threshold (where merging ends; otsu: of the similarities of all neighbouring patches) and objects.
    """
    rows = affinity_rows(features, p.center, normalize=True)[0].cpu()  # [N, D]; sums on a GPU would depend on their order
    labels = merge(rows, grid, p.threshold).reshape(grid)
    attention = rank_patches(query, keys, "softmax")[0].cpu().numpy().astype(np.float64)  # [N], sums to 1
    excess = np.bincount(labels.ravel(), attention - 1 / attention.size)  # [R]
    order = np.argsort(-excess, kind="stable")
    kept = [r for r in order if excess[r] > 0 and boundary_connectivity(labels == r) <= BORDER]
    return [labels == r for r in (kept or order[:1])[: p.objects]]


def boundary_connectivity(mask: np.ndarray) -> float:
    """Patches of the mask [rows, cols] bool on the image's border, a corner counted twice, over the root of its area."""
    border = sum(int(side.sum()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    return float(border / max(1, int(mask.sum())) ** 0.5)


def merge(rows: Tensor, grid: tuple[int, int], threshold: float | str) -> np.ndarray:
    """The region of each patch, [N] int from 0 to R - 1. rows: [N, D] of length 1 (or 0)."""
    patches = np.arange(len(rows)).reshape(grid)
    neighbours = [(patches[:, :-1], patches[:, 1:]), (patches[:-1], patches[1:])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in neighbours], axis=1)  # [2, E]
    metric, labels = rows.T @ rows, patches.ravel()
    if isinstance(threshold, str):
        similarities = similarity(rows, metric, pairs)
        threshold = float(otsu(similarities[None])[0]) if len(similarities) else START
    for level in [*np.arange(START, threshold, -STEP), threshold]:
        while True:
            count = int(labels.max()) + 1
            ends = np.unique(np.sort(labels[pairs], axis=0), axis=1)
            ends = ends[:, ends[0] != ends[1]]  # [2, E] of regions
            similar = ends[:, (similarity(means(rows, labels, count), metric, ends) > level).numpy()]
            if not similar.size:
                break
            edges = coo_matrix((np.ones(similar.shape[1]), tuple(similar)), (count, count))
            labels = connected_components(edges, directed=False)[1][labels]
    return np.asarray(labels)


def means(rows: Tensor, labels: np.ndarray, count: int) -> Tensor:
    """Mean feature of each region, [R, D]."""
    index = torch.from_numpy(labels).long()
    sums = torch.zeros(count, rows.shape[1], dtype=rows.dtype).index_add_(0, index, rows)
    return sums / index.bincount(minlength=count)[:, None]


def similarity(features: Tensor, metric: Tensor, pairs: np.ndarray) -> Tensor:
    """Of pairs [2, E] of regions with mean features [R, D]: the weighted cosines, [E]; 0 for a feature of length 0."""
    a, b = torch.from_numpy(pairs).long()
    cosines = []
    for other in (features, features @ metric):  # [R, D]
        lengths = (features * other).sum(1).clamp_min(1e-24).sqrt()  # [R]
        cosines.append((features[a] * other[b]).sum(1) / (lengths[a] * lengths[b]))
    return FEATURE_WEIGHT * cosines[0] + (1 - FEATURE_WEIGHT) * cosines[1]
