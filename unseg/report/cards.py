"""A page of cluster cards, to name clusters by: their size, coherence, most and least typical masks.

Shapes: M masks, D channels of a CLS token, K clusters.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unseg.clustering.algorithms import Clustering, normalise
from unseg.clustering.naming import ClusterEntry, ClusterNames
from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.report import page, pictures
from unseg.report.sheets import ClusterCard, Crop, crop

TYPICAL, ATYPICAL = 8, 4  # masks on a card: those nearest to the cluster's mean, and those farthest from it


def centre_tokens(tokens: np.ndarray) -> np.ndarray:
    """[M, D] minus their common mean, which would make all cosines large; then scaled to length 1 (0 stays 0)."""
    centred = tokens - tokens.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def read_tokens(file: Path, instances: Sequence[Instance], p: Clustering) -> np.ndarray:
    """[M, D] float64: the instances' descriptors as they were clustered, centred. Raises InputError if there is no such file."""
    try:
        stored = np.load(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); make it with `dvc repro embed`") from None
    row_of_id = {id: n for n, id in enumerate(stored["ids"].tolist())}
    unit = normalise(stored["tokens"], stored["tokens"], p.whiten, p.components)
    return centre_tokens(unit[[row_of_id[x.id] for x in instances]])


def similarity(tokens: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Cosine of each of cluster k's tokens ([M, D], of unit length) with their mean direction; nan for other masks: [M]."""
    members = labels == k
    cosines = np.full(len(labels), np.nan)
    if members.any():
        mean = tokens[members].mean(0)
        cosines[members] = tokens[members] @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    return cosines


def cluster_cards(
    root: str, images: Sequence[ImageRecord], instances: Sequence[Instance], tokens: np.ndarray, count: int
) -> list[ClusterCard]:
    """A card for each of `count` clusters; tokens: [M, D] float64, from `centre_tokens`, of the instances in their order."""
    image_by_id, labels = {i.id: i for i in images}, np.array([x.category_id for x in instances], np.int64)

    def crops(members: Sequence[int]) -> list[Crop]:
        visible = [instances[m] for m in members if instances[m].mask.area]
        return [crop(root, image_by_id[x.image_id], x) for x in visible]

    cards = []
    for k in track(range(count), "draw clusters", count):
        cosines = similarity(tokens, labels, k)
        order = np.argsort(-cosines, kind="stable")[: int((labels == k).sum())].tolist()
        atypical = order[max(TYPICAL, len(order) - ATYPICAL) :]
        coherence = float(np.nanmean(cosines)) if order else float("nan")
        fraction = len(order) / max(1, len(instances))
        cards.append(ClusterCard(k, len(order), fraction, crops(order[:TYPICAL]), crops(atypical[::-1]), coherence))
    return cards


def document(cards: Sequence[ClusterCard], clusters: ClusterNames, scheme: pictures.Scheme, file: str) -> bytes:
    """The page, in UTF-8; file: the name of clusters.yaml."""
    entries = sum(entry != ClusterEntry() for entry in clusters.entries.values())
    section = page.Section("clusters", "Clusters", "cards", {"cards": cards, "scheme": scheme})
    return page.render("clusters", [section], cards=cards, file=file, entries=entries)
