"""Labels for objects: K-means on whitened, l2-normalised CLS tokens (MaskDistill, section 3.2; specification B.2).

Two options beyond the paper: PCA whitening of the leading components only, and over-clustering: K-means into many small
clusters, whose centroids Ward's linkage then merges to K.

Shapes: M objects, D channels, K clusters, O over-clusters.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

FLAT = 1e-10  # what varies by a smaller share than this is rounding; to divide by it would make noise of it


@dataclass(frozen=True)
class Clustering:
    """The `cluster` group of params.yaml."""

    k: int  # labels, background not counted; more than there are classes is over-clustering
    whiten: str  # std: divide each channel by its deviation, no mean removed (published) | pca: PCA whitening | none
    components: int | None  # pca: leading components that are kept; null: all
    overcluster: int | None  # clusters of K-means before they are merged to k by Ward's linkage; null: K-means into k (paper)
    algorithm: str  # full | minibatch (published)
    starts: int  # runs from other centres, of which the tightest is kept
    iterations: int
    support: str | None  # another cls_tokens.npz, clustered together with this one and then left out

    def __post_init__(self) -> None:
        if self.whiten not in ("std", "pca", "none"):
            raise ValueError(f"cluster.whiten is {self.whiten!r}; it must be std, pca or none")
        if self.algorithm not in ("full", "minibatch"):
            raise ValueError(f"cluster.algorithm is {self.algorithm!r}; it must be full or minibatch")
        if self.components is not None and (self.components < 1 or self.whiten != "pca"):
            raise ValueError(f"cluster.components is {self.components}; it must be null, or at least 1 with cluster.whiten: pca")
        if self.overcluster is not None and self.overcluster < self.k:
            raise ValueError(f"cluster.overcluster is {self.overcluster}; it must be null, or at least cluster.k, {self.k}")
        if not 1 <= self.k <= 254:
            raise ValueError(f"cluster.k is {self.k}; it must be from 1 to 254 (label maps have 8 bits)")


def normalise(tokens: np.ndarray, fit: np.ndarray, whiten: str, components: int | None = None) -> np.ndarray:
    """Whiten by the statistics of `fit` [M', D], then scale each row of `tokens` [M, D] to length 1. float64

    A channel that does not vary, and a row of zeros, stay as they are; under pca, directions that do not vary are left out.

    Args:
        components: under pca, how many leading components are kept, [M, components] then; all where None or more than D.
    """
    reference = fit.astype(np.float64)
    if whiten == "std":
        deviation = reference.std(0)
        scale = np.where(deviation > FLAT * np.abs(reference).max(0), deviation, 1)
        del reference  # of very many objects, each copy counts
        x = tokens.astype(np.float64)
        x /= scale
    elif whiten == "pca":
        pca = PCA(whiten=True, svd_solver="full").fit(reference)
        held = pca.explained_variance_ > FLAT * pca.explained_variance_[0]
        x = (pca.transform(tokens.astype(np.float64)) * held)[:, :components]
    else:
        x = tokens.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.where(length > 0, length, 1)
    return x


def kmeans(tokens: np.ndarray, fit: np.ndarray, p: Clustering, seed: int) -> np.ndarray:
    """Cluster `fit` [M', D] and name the cluster of each row of `tokens` [M, D]: int64, 0..K-1.

    Clusters are numbered by size, largest first, as they lie in `fit`.

    Raises:
        ValueError: fewer different rows in `fit` than clusters.
    """
    different, name, count = len(np.unique(fit, axis=0)), "k", p.k
    if p.overcluster is not None:
        name, count = "overcluster", p.overcluster
    if different < count:
        raise ValueError(f"{different} different objects cannot make {count} clusters; lower cluster.{name} or add images")
    kind = KMeans if p.algorithm == "full" else MiniBatchKMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = kind(count, n_init=p.starts, max_iter=p.iterations, random_state=seed)
        model.fit(normalise(fit, fit, p.whiten, p.components))
    merged = np.arange(count)  # [O], the cluster of each over-cluster
    if count > p.k:
        merged = AgglomerativeClustering(p.k, linkage="ward").fit_predict(model.cluster_centers_)
    rank = np.empty(p.k, np.int64)
    rank[np.argsort(-np.bincount(merged[model.labels_], minlength=p.k), kind="stable")] = np.arange(p.k)
    if not len(tokens):
        return np.zeros(0, np.int64)
    return np.asarray(rank[merged[model.predict(normalise(tokens, fit, p.whiten, p.components))]])
