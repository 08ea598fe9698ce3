"""The normalised cut (unseg/mining/tokencut.py), against the generalised eigenproblem as the paper writes it."""

import factories
import numpy as np
import pytest
import torch
from scipy import linalg

from unseg.mining import tokencut
from unseg.mining.affinity import Mining, otsu
from unseg.mining.methods import mine_all, mine_first


def blobs(seed: int, patches: int, width: int = 6) -> torch.Tensor:
    """[1, 1, N, d] around two directions, a third of the patches around the first."""
    rng = np.random.default_rng(seed)
    centres = np.eye(width)[(np.arange(patches) % 3 > 0).astype(int)]
    return torch.from_numpy((centres + rng.normal(0, 0.25, (patches, width))).astype(np.float32))[None, None]


def plain(features: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Mask [N] and source by (D - W) y = lambda D y, from features [N, d]."""
    n = len(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    w = np.array([[1.0 if float(unit[i] @ unit[j]) > threshold else 1e-5 for j in range(n)] for i in range(n)])
    d = np.diag(w.sum(1))
    _, vectors = linalg.eigh(d - w, d)
    y = vectors[:, 1]
    source = int(np.abs(y).argmax())
    above = y > y.mean()
    return (above if above[source] else ~above), source


@pytest.mark.parametrize("patches", [9, 40, 150])
def test_the_generalised_eigenproblem_gives_the_same_mask(patches: int) -> None:
    """Below and above DENSE."""
    for seed in range(4):
        features = blobs(seed, patches)
        got = tokencut.mine(features, center=False, threshold=0.5)
        mask, source = plain(features[0, 0].double().numpy(), 0.5)
        assert got.masks[0].tolist() == mask.tolist(), seed
        assert got.masks[0, source]
        assert 0 < mask.mean() < 1
        again = tokencut.mine(features, center=False, threshold=0.5)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_the_largest_entry_is_positive_whatever_the_solver() -> None:
    edges = np.kron(np.eye(2), np.ones((50, 50))) > 0
    edges[:30, 60:] = edges[60:, :30] = True
    y = tokencut.second_eigenvector(edges)
    assert y[np.abs(y).argmax()] > 0
    w = np.where(edges, 1, tokencut.EPSILON)
    d = w.sum(1)
    value = y @ (d * y - w @ y) / (y @ (d * y))
    assert np.allclose(d * y - w @ y, value * d * y, atol=1e-10)
    assert value == pytest.approx(linalg.eigh(np.diag(d) - w, np.diag(d), eigvals_only=True)[1])


def test_the_smaller_side_of_two_cliques_is_the_object() -> None:
    # y is constant on a clique; orthogonal to D 1, so that the smaller one has the larger entries
    features = torch.eye(2)[[0, 0, 0, 0, 1, 1]][None, None]
    got = tokencut.mine(features, center=False, threshold=0.2)
    assert got.masks[0].int().tolist() == [0, 0, 0, 0, 1, 1]
    assert int(got.source[0]) in (4, 5)
    assert float(got.similar_fraction[0]) == pytest.approx(2 / 6)


def test_patches_that_are_all_alike_and_a_single_patch() -> None:
    for patches in (1, 2, 5, 100):
        got = tokencut.mine(torch.ones(1, 2, patches, 3), center=False, threshold=0.2)
        assert got.masks[0, int(got.source[0])]


def test_centring_and_otsu() -> None:
    features = blobs(0, 60) + 5
    assert float(tokencut.mine(features, False, 0.2).similar_fraction) == 1  # a common part makes all alike
    assert tokencut.mine(features, True, 0.2).masks[0].tolist() == (np.arange(60) % 3 == 0).tolist()
    rows = torch.nn.functional.normalize(features[0, 0], dim=1)
    bound = float(otsu((rows @ rows.T).view(1, -1)))
    assert 0 < bound < 1
    assert torch.equal(tokencut.mine(features, False, "otsu").masks, tokencut.mine(features, False, bound).masks)


def test_the_method_keeps_the_region_of_the_source_and_cuts_again() -> None:
    classes = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 0], [0, 1, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0]])
    features = torch.eye(3)[classes.ravel()][None, None]
    p = factories.group("mine", Mining, method="tokencut", objects=2, stop=0.5, threshold=0.2, center=False, component=False)
    query = torch.zeros(1, 1, 3)
    first, second = mine_all(query, features, mine_first(query, features, p), classes.shape, p)
    assert sorted([first.tolist(), second.tolist()]) == sorted([(classes == 1).tolist(), (classes == 2).tolist()])
