"""Labels for objects: K-means on whitened, l2-normalised CLS tokens (MaskDistill, section 3.2; docs/spec/maskdistill.md, B.2).

Not in the paper: PCA whitening of the leading components, and spectral clustering of the graph of nearest neighbours (Ng,
Jordan and Weiss 2001; labels by Yu and Shi 2003), which can follow a class along its poses, where K-means splits it; and many
small clusters by K-means, merged by Ward's linkage along the links of neighbouring centres (`overcluster`).

Shapes: M objects, D channels, K clusters.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Interval
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph
from sklearn.preprocessing import StandardScaler

from unseg.core.params import PositiveInt


class Assignment(NamedTuple):
    """The clusters of M objects."""

    labels: np.ndarray  # [M] int
    uncertain: np.ndarray  # [M] bool, far from the centre of their over-cluster; none for other algorithms than overcluster


Predict = Callable[[np.ndarray], Assignment]  # of objects [M, D]
FLAT = 1e-10  # directions with a smaller fraction of the largest variance are rounding errors


@dataclass(frozen=True)
class Clustering:
    """The `cluster` group of params.yaml."""

    k: Annotated[int, Interval(ge=1, le=254)]  # clusters, without background; label maps have 8 bits
    whiten: Literal["std", "pca", "none"]  # std: divide each channel by its deviation, without removing the mean (published)
    components: PositiveInt | None  # pca: number of leading components; null: all
    algorithm: Literal["full", "minibatch", "spectral", "overcluster"]  # full: K-means (paper); minibatch: on batches (published)
    starts: PositiveInt  # K-means: runs from different centres; the tightest is kept
    iterations: PositiveInt  # K-means
    neighbors: PositiveInt  # nearest neighbours in the graph, spectral: of an object; overcluster: of a small cluster's centre
    overclusters: PositiveInt  # overcluster: small clusters that are merged to k
    uncertain: Annotated[float, Interval(ge=0, lt=1)]  # overcluster: fraction of a small cluster that is too far from its centre
    support: str | None  # another cls_tokens.npz, clustered together with this one and not written

    def __post_init__(self) -> None:
        if self.components is not None and self.whiten != "pca":
            raise ValueError(f"cluster.components is {self.components}; it must be null, or at least 1 with cluster.whiten: pca")
        if self.algorithm == "overcluster" and self.overclusters < self.k:
            raise ValueError(f"cluster.overclusters is {self.overclusters}; it must be at least cluster.k, {self.k}")
        if self.algorithm == "overcluster" and self.neighbors >= self.overclusters:
            raise ValueError(f"cluster.neighbors is {self.neighbors}; it must be below cluster.overclusters, {self.overclusters}")


def normalise(tokens: np.ndarray, fit: np.ndarray, whiten: str, components: int | None = None) -> np.ndarray:
    """Whiten by the statistics of `fit` [M', D], then scale each row of `tokens` [M, D] to length 1. float64

    Constant channels and rows of zeros are not scaled; pca leaves out directions without variance.

    Args:
        components: pca: the number of leading components, [M, components] then; None: all.
    """
    if whiten == "std":
        x = StandardScaler(with_mean=False, copy=False).fit(fit).transform(tokens.astype(np.float64))
    elif whiten == "pca":
        pca = PCA(whiten=True, svd_solver="full").fit(fit.astype(np.float64))
        has_variance = pca.explained_variance_ > FLAT * pca.explained_variance_[0]
        x = (pca.transform(tokens.astype(np.float64)) * has_variance)[:, :components]
    else:
        x = tokens.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.divide(x, length, out=x, where=length > 0))


def cluster(tokens: np.ndarray, fit: np.ndarray, p: Clustering, seed: int) -> np.ndarray:
    """The labels of `assign`, [M] int64."""
    return assign(tokens, fit, p, seed).labels


def assign(tokens: np.ndarray, fit: np.ndarray, p: Clustering, seed: int) -> Assignment:
    """Cluster `fit` [M', D] and assign each row of `tokens` [M, D] to a cluster: int64, 0..K-1.

    Clusters are numbered by their size in `fit`, largest first. Each row gets the cluster of the nearest centre (K-means,
    overcluster), or of the majority of its nearest neighbours in `fit` (spectral).

    Raises:
        ValueError: `fit` has fewer distinct rows than clusters or over-clusters, or no more rows than neighbours.
    """
    if (distinct := len(np.unique(fit, axis=0))) < p.k:
        raise ValueError(f"only {distinct} distinct masks cannot make {p.k} clusters; lower cluster.k or add images")
    x = normalise(fit, fit, p.whiten, p.components)
    labels, predict = {"spectral": spectral, "overcluster": overcluster}.get(p.algorithm, kmeans)(x, p, seed)
    rank = np.empty(p.k, np.int64)
    rank[np.argsort(-np.bincount(labels, minlength=p.k), kind="stable")] = np.arange(p.k)
    if not len(tokens):
        return certain(np.zeros(0, np.int64))
    found = predict(x if tokens is fit else normalise(tokens, fit, p.whiten, p.components))
    return Assignment(rank[found.labels], found.uncertain)


def certain(labels: np.ndarray) -> Assignment:
    return Assignment(labels, np.zeros(len(labels), bool))


def kmeans(x: np.ndarray, p: Clustering, seed: int) -> tuple[np.ndarray, Predict]:
    """The clusters [M'] of x [M', D] by K-means, and a function that assigns other rows to them."""
    algorithm = MiniBatchKMeans if p.algorithm == "minibatch" else KMeans
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        model = algorithm(p.k, n_init=p.starts, max_iter=p.iterations, random_state=seed).fit(x)
    return model.labels_, lambda rows: certain(model.predict(rows))


def spectral(x: np.ndarray, p: Clustering, seed: int) -> tuple[np.ndarray, Predict]:
    """As `kmeans`, by a normalised cut of the graph of nearest neighbours. Raises ValueError: no more rows than neighbours."""
    if len(x) <= p.neighbors:
        raise ValueError(f"{len(x)} objects have no {p.neighbors} neighbours each; lower cluster.neighbors or add images")
    model = SpectralClustering(
        p.k, affinity="nearest_neighbors", n_neighbors=p.neighbors, assign_labels="discretize", random_state=seed
    )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the graph may have several parts
        labels = model.fit(x).labels_
    classifier = KNeighborsClassifier(p.neighbors).fit(x, labels)
    return labels, lambda rows: certain(classifier.predict(rows))


def overcluster(x: np.ndarray, p: Clustering, seed: int) -> tuple[np.ndarray, Predict]:
    """As `kmeans`, with p.overclusters centres, which are merged to K by Ward's linkage (Ward 1963), neighbours only.

    Of each over-cluster the fraction p.uncertain that is farthest from its centre, rounded down, is uncertain: it has no part
    in the mean that is merged. At least one object of each over-cluster is certain. Other rows get the merged cluster of the
    nearest centre, and are uncertain beyond the same distance.

    Raises:
        ValueError: x has fewer distinct rows than p.overclusters.
    """
    if (distinct := len(np.unique(x, axis=0))) < p.overclusters:
        raise ValueError(f"only {distinct} distinct masks cannot make {p.overclusters} clusters; lower cluster.overclusters")
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        model = KMeans(p.overclusters, n_init=p.starts, max_iter=p.iterations, random_state=seed).fit(x)
    distances = model.transform(x)[np.arange(len(x)), model.labels_]  # [M'], to the centre
    radius, means = np.full(p.overclusters, np.inf), np.zeros_like(model.cluster_centers_)
    for k in range(p.overclusters):
        members = np.flatnonzero(model.labels_ == k)
        members = members[np.argsort(distances[members], kind="stable")]
        inner = len(members) - int(p.uncertain * len(members))
        if inner < len(members):  # halfway to the next: rounding must not decide
            radius[k] = distances[members[inner - 1 : inner + 1]].mean()
        means[k] = x[members[:inner]].mean(0)
    ward = AgglomerativeClustering(p.k, linkage="ward", connectivity=kneighbors_graph(means, p.neighbors))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a graph of several parts is made connected
        merged = ward.fit(means).labels_

    def predict(rows: np.ndarray) -> Assignment:
        distances = model.transform(rows)
        nearest = distances.argmin(1)
        return Assignment(merged[nearest], distances.min(1) > radius[nearest])

    return merged[model.labels_], predict
