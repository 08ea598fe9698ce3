"""TokenCut: an object is one side of the normalised cut of the graph of patches (Wang et al. 2022, arXiv:2202.11539, section 3).

Two patches have an edge of 1 if the cosine of their features is above a threshold, else of EPSILON (Eq. 6). The cut minimises
what it severs, relative to what each side holds (Shi and Malik 2000); its relaxation is the second smallest eigenvector y of
(D - W) y = lambda D y. The object is the side of y's mean on which |y| is largest (section 3.3).

Shapes: B images, H heads, N patches, d channels of a head, D = H d.
"""

import numpy as np
import torch
from scipy import linalg
from scipy.sparse.linalg import eigsh
from torch import Tensor

from unseg.mining.affinity import ObjectMasks, affinity_rows, otsu

EPSILON = 1e-5  # weight of the other edges (paper): the graph stays connected
DENSE = 64  # patches; for fewer LAPACK, which ARPACK is faster than for more (N = 2,000: 0.08 s instead of 0.5 s, one thread)


def mine(features: Tensor, center: bool, threshold: float | str) -> ObjectMasks:
    """The object of each image; its source is the patch of the largest |y|, the lower of equal ones.

    Args:
        features: [B, H, N, d].
        center: subtract each image's mean feature first. Not in the paper.
        threshold: of the cosine; 0.2 in the paper. otsu: `affinity.otsu` of the N^2 cosines of an image.
    """
    masks, sources, fractions = [], [], []
    for rows in affinity_rows(features, center, normalize=True):  # [N, D], image by image: one N x N matrix at a time
        cosines = rows @ rows.T
        bound = otsu(cosines.view(1, -1)) if isinstance(threshold, str) else threshold
        edges = (cosines > bound).cpu().numpy()
        y = second_eigenvector(edges)
        source = int(np.abs(y).argmax())
        masks.append(y > y.mean() if y[source] > y.mean() else y < y.mean())
        masks[-1][source] = True  # if all are equal
        sources.append(source)
        fractions.append(float(edges[source].mean()))
    return ObjectMasks(torch.from_numpy(np.stack(masks)), torch.tensor(sources), torch.tensor(fractions))


def second_eigenvector(edges: np.ndarray) -> np.ndarray:
    """y [N] float64 of the second smallest eigenvalue of (D - W) y = lambda D y, for edges [N, N] bool, symmetric.

    Its entry of largest magnitude is positive. y is D^-1/2 z, for the second largest eigenvector z of D^-1/2 W D^-1/2, which is
    symmetric; ARPACK starts at a fixed vector, so that a repetition gives the same digits.
    """
    weights = np.where(edges, 1.0, EPSILON)
    scale, n = weights.sum(1) ** -0.5, len(edges)  # D^-1/2
    if n == 1:
        return np.ones(1)
    weights *= scale[:, None]
    weights *= scale
    if n < DENSE:
        z = linalg.eigh(weights, subset_by_index=[n - 2, n - 1])[1][:, 0]
    else:
        values, vectors = eigsh(weights, k=2, which="LA", v0=np.cos(np.arange(n)))
        z = vectors[:, np.argmin(values)]
    y = np.asarray(scale * z)
    return np.asarray(y * np.sign(y[np.abs(y).argmax()]))
