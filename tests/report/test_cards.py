"""The page of cluster cards: coherence by hand, most and least typical masks, names as text."""

from pathlib import Path

import factories
import numpy as np
import pytest
from PIL import Image as Pillow

from unseg.clustering.naming import ClusterEntry, ClusterNames
from unseg.core.image_index import ImageRecord
from unseg.report import cards, pictures


def test_coherence_by_hand() -> None:
    tokens = cards.centre_tokens(np.array([[10.0, 1], [10, 1], [10, -1], [10, -1]]))
    assert tokens.tolist() == [[0, 1], [0, 1], [0, -1], [0, -1]]  # what all share is gone
    turned = np.array([[1.0, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    cosines = cards.similarity(turned, np.array([0, 0, 0, 1]), 0)
    mean = turned[:3].mean(0) / np.linalg.norm(turned[:3].mean(0))
    assert cosines[:3] == pytest.approx(turned[:3] @ mean)
    assert np.isnan(cosines[3])
    assert np.isnan(cards.similarity(turned, np.zeros(4, int), 1)).all()


def test_the_page_shows_the_most_and_the_least_typical(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:12, 5:12] = True
    images, instances = [], []
    angles = np.linspace(0, 1, 15)
    for i in range(15):
        Pillow.fromarray(np.full((20, 20, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
        images.append(ImageRecord(i + 1, f"{i}.png", 20, 20, "train"))
        instances.append(factories.instance(mask, i + 1, 0, i + 1))
    tokens = np.stack([np.cos(angles), np.sin(angles)], 1)
    (card, empty) = cards.cluster_cards(str(tmp_path), images, instances, tokens, 2)
    assert card.crops[0].file_name == "7.png"  # the middle one of a fan
    assert {name for _, name in card.atypical[:2]} == {"0.png", "14.png"}
    assert len(card.crops) == cards.TYPICAL
    assert not {n for _, n in card.crops} & {n for _, n in card.atypical}
    assert (empty.size, empty.crops) == (0, [])
    said = ClusterNames(2, {0: ClusterEntry(name="<b>dog</b>"), 1: ClusterEntry(ignore=True)})
    page = cards.document([card, empty], said, pictures.apply_names(pictures.scheme(2, [], {}), said), "clusters.yaml").decode()
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "<b>dog" not in page
    assert "(ignored)" in page
    assert page.count("<img") == 12
