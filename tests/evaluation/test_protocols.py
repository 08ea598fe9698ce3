"""Protocols of clustering by their names: by hand, against independent libraries, and under renaming and reordering."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import jaccard_score
from sklearn.metrics.cluster import contingency_matrix

from unseg.core.instances import Instance
from unseg.evaluation import linear_probe, metrics, protocols
from unseg.segmentation import segmenter
from unseg.segmentation.crf import Crf

C, K = 4, 5  # background counted in both


def square(x: int, image: int = 1, category: int = 0, size: int = 10) -> Instance:
    mask = np.zeros((20, 100), bool)
    mask[:size, x : x + size] = True
    return factories.instance(mask, image, category)


def box(x: int, image: int = 1, category: int = 1) -> metrics.TruthBox:
    return metrics.TruthBox(image, category, square(x).bbox)


def test_a_mask_votes_for_the_object_whose_box_fits_best() -> None:
    objects = [box(0, category=1), box(30, category=2), box(60, category=3), box(0, 3, 2)]
    masks = [square(2, category=0), square(31, category=0), square(90, category=3), square(0, 2, 1), square(0, 3, 1)]
    votes = protocols.box_votes(objects, masks, C, K)
    # the third meets none: the first object has it; the fourth is in an image without objects
    assert votes.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_clusters_are_named_one_to_one_unless_there_are_more_than_classes() -> None:
    votes = np.array([[9, 8, 0], [8, 0, 0], [0, 0, 1]])
    assert protocols.from_votes(votes).tolist() == [0, 2, 1, 3]  # 8 + 8 + 1 is more than 9 + 0 + 1
    more = np.array([[9, 8, 0, 2], [8, 0, 0, 3]])
    assert protocols.from_votes(more).tolist() == [0, 1, 1, -1, 2]  # the third has no object
    assert protocols.from_votes(np.zeros((3, 2), np.int64)).tolist() == [0, -1, -1]


def test_every_number_has_a_protocol_and_the_other_way_round() -> None:
    scores = protocols.clustering(np.eye(C, K, dtype=np.int64), np.eye(C - 1, K - 1, dtype=np.int64))
    assert scores.keys() == protocols.CLUSTERING.keys()
    assert set(scores.values()) == {1.0}
    unknown = protocols.clustering(np.eye(C, K, dtype=np.int64), np.zeros((C - 1, K - 1), np.int64))
    assert np.isnan(unknown["miou_training_objects"])


pixels = arrays(np.uint8, 60, elements=st.integers(0, 254))


@settings(max_examples=40, deadline=None)
@given(pixels, pixels, st.randoms(use_true_random=False))
def test_protocols_agree_with_sklearn_and_scipy_and_forget_names_and_order(
    truth: np.ndarray, guess: np.ndarray, random: Any
) -> None:
    t, p = truth % C, guess % K
    t[:C], p[:K] = range(C), range(K)  # all are there
    counts = metrics.confusion(t[None], p[None], C, K)
    table = contingency_matrix(t, p)
    assert (table == counts).all()
    votes = contingency_matrix(t[5:35] % (C - 1), p[5:35] % (K - 1))[: C - 1]
    votes = np.pad(votes, ((0, C - 1 - votes.shape[0]), (0, K - 1 - votes.shape[1])))
    scores = protocols.clustering(counts, votes)

    def miou(names: np.ndarray) -> float:
        """By scikit-learn, of pixels renamed; a cluster without a class is a label that no class has."""
        return float(np.mean(jaccard_score(t, np.where(names < 0, C, names)[p], labels=range(C), average=None, zero_division=0)))

    names = np.full(K, -1)
    rows, cols = linear_sum_assignment([[jaccard_score(t == c, p == k) for k in range(K)] for c in range(C)], maximize=True)
    names[cols] = rows
    assert scores["miou"] == pytest.approx(miou(names))
    assert scores["miou_majority"] == pytest.approx(miou(table.argmax(0)))
    assert scores["miou_training_objects"] == pytest.approx(miou(protocols.from_votes(votes)))
    assert scores["miou"] >= max(scores["miou_accuracy_matching"], scores["miou_background_fixed"]) - 1e-12

    order = [0, *random.sample(range(1, K), K - 1)]  # other names for the clusters; background stays label 0
    other = protocols.clustering(counts[:, order], votes[:, np.array(order[1:]) - 1])
    assert {name: pytest.approx(x, nan_ok=True) for name, x in scores.items() if name != "miou_accuracy_matching"} == {
        name: x for name, x in other.items() if name != "miou_accuracy_matching"
    }


def test_the_probe_is_evaluated_with_and_without_a_crf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stray pixel in a photograph of two halves is what a CRF mends."""
    rows, half = 12, np.repeat([[0, 1]], 12, 0).repeat(6, 1)  # [12, 12] classes
    image = factories.image(1, (rows, rows), "val", "a.png")
    Pillow.fromarray(np.repeat((200 * half)[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    probability = torch.tensor(np.where(half == np.arange(2)[:, None, None], 0.7, 0.3))  # [2, 12, 12]
    probability[:, 6, 2] = torch.tensor([0.4, 0.6])
    monkeypatch.setattr(segmenter, "load_batches", lambda *_: [])
    monkeypatch.setattr(segmenter, "predict", lambda *_: [(image, probability)])
    net = SimpleNamespace(labels=2)
    known = {image: half.astype(np.uint8)}
    crf = Crf("conv", 5, smooth_xy=1, smooth_weight=3, bilateral_xy=20, bilateral_rgb=10, bilateral_weight=4, window=12, stride=1)
    counts, refined = linear_probe.evaluate(net, str(tmp_path), [image], known, None, crf)  # type: ignore[arg-type]
    assert counts.tolist() == [[71, 1], [0, 72]]
    assert refined is not None
    assert refined.tolist() == [[72, 0], [0, 72]]
    assert linear_probe.evaluate(net, str(tmp_path), [image], known, None, None)[1] is None  # type: ignore[arg-type]
