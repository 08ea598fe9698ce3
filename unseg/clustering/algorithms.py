"""Labels for objects: K-means on whitened, l2-normalised CLS tokens (MaskDistill, section 3.2; docs/spec/maskdistill.md, B.2).

Two options beyond the paper: PCA whitening of the leading components only, and spectral clustering of the graph of nearest
neighbours (Ng, Jordan and Weiss 2001; labels by Yu and Shi 2003), which follows a class along its poses where K-means cuts it.

Shapes: M objects, D channels, K clusters.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier

Predict = Callable[[np.ndarray], np.ndarray]  # [M, D] to int [M]
FLAT = 1e-10  # what varies by a smaller share than this is rounding; to divide by it would make noise of it


@dataclass(frozen=True)
class Clustering:
    """The `cluster` group of params.yaml."""

    k: int  # labels, background not counted; more than there are classes is over-clustering
    whiten: str  # std: divide each channel by its deviation, no mean removed (published) | pca: PCA whitening | none
    components: int | None  # pca: leading components that are kept; null: all
    algorithm: str  # full: K-means (paper) | minibatch: K-means on batches (published) | spectral
    starts: int  # K-means: runs from other centres, of which the tightest is kept
    iterations: int  # K-means
    neighbors: int  # spectral: nearest neighbours of an object in the graph
    support: str | None  # another cls_tokens.npz, clustered together with this one and then left out

    def __post_init__(self) -> None:
        if self.whiten not in ("std", "pca", "none"):
            raise ValueError(f"cluster.whiten is {self.whiten!r}; it must be std, pca or none")
        if self.algorithm not in ("full", "minibatch", "spectral"):
            raise ValueError(f"cluster.algorithm is {self.algorithm!r}; it must be full, minibatch or spectral")
        if self.neighbors < 1:
            raise ValueError(f"cluster.neighbors is {self.neighbors}; it must be at least 1")
        if self.components is not None and (self.components < 1 or self.whiten != "pca"):
            raise ValueError(f"cluster.components is {self.components}; it must be null, or at least 1 with cluster.whiten: pca")
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


def cluster(tokens: np.ndarray, fit: np.ndarray, p: Clustering, seed: int) -> np.ndarray:
    """Cluster `fit` [M', D] and name the cluster of each row of `tokens` [M, D]: int64, 0..K-1.

    Clusters are numbered by size, largest first, as they lie in `fit`. Each row gets the cluster of the nearest centre
    (K-means), or of most of its nearest neighbours in `fit`, itself among them where it is there (spectral).

    Raises:
        ValueError: fewer different rows in `fit` than clusters, or no more of them than neighbours.
    """
    different = len(np.unique(fit, axis=0))
    if different < p.k:
        raise ValueError(f"{different} different objects cannot make {p.k} clusters; lower cluster.k or add images")
    x = normalise(fit, fit, p.whiten, p.components)
    labels, predict = (spectral if p.algorithm == "spectral" else kmeans)(x, p, seed)
    rank = np.empty(p.k, np.int64)
    rank[np.argsort(-np.bincount(labels, minlength=p.k), kind="stable")] = np.arange(p.k)
    if not len(tokens):
        return np.zeros(0, np.int64)
    return np.asarray(rank[predict(x if tokens is fit else normalise(tokens, fit, p.whiten, p.components))])


def kmeans(x: np.ndarray, p: Clustering, seed: int) -> tuple[np.ndarray, Predict]:
    """The clusters [M'] of x [M', D] by K-means, and what names those of other rows."""
    kind = MiniBatchKMeans if p.algorithm == "minibatch" else KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = kind(p.k, n_init=p.starts, max_iter=p.iterations, random_state=seed).fit(x)
    return model.labels_, model.predict


def spectral(x: np.ndarray, p: Clustering, seed: int) -> tuple[np.ndarray, Predict]:
    """The clusters [M'] of x [M', D] by a normalised cut of the graph of nearest neighbours, and what names those of other rows.

    Raises:
        ValueError: no more rows than neighbours.
    """
    if len(x) <= p.neighbors:
        raise ValueError(f"{len(x)} objects have no {p.neighbors} neighbours each; lower cluster.neighbors or add images")
    model = SpectralClustering(
        p.k, affinity="nearest_neighbors", n_neighbors=p.neighbors, assign_labels="discretize", random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the graph has several parts, as it may
        labels = model.fit(x).labels_
    return labels, KNeighborsClassifier(p.neighbors).fit(x, labels).predict
