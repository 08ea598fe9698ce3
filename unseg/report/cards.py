"""A page of cluster cards, to name clusters by: their size, how alike their masks are, the most and the least typical ones.

Shapes: M masks, D channels of a CLS token, K clusters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unseg.clustering.naming import ClusterNames
from unseg.core.console import track
from unseg.core.image_index import ImageRecord
from unseg.core.rle import decode
from unseg.data import photos
from unseg.report import page, pictures
from unseg.report.page import PERCENT, Html, Section, html, join, named
from unseg.report.sheets import CROP, Record

TYPICAL, ODD = 8, 4  # masks on a card: those nearest to the cluster's mean, and those farthest from it


class ClusterCard(NamedTuple):
    """A cluster, in numbers and pictures."""

    id: int
    size: int  # masks
    share: float  # of all masks
    coherence: float  # mean cosine of its tokens with their mean direction; 1: all alike; nan: no mask
    typical: list[tuple[np.ndarray, str]]  # pixels [S, S, 3] uint8 and the file they are from, the most typical first
    odd: list[tuple[np.ndarray, str]]


def centred(tokens: np.ndarray) -> np.ndarray:
    """[M, D] less what all have in common (their mean, which would make all alike), each of length 1 again or 0."""
    rest = tokens - tokens.mean(0)
    return np.asarray(rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12))


def similarity(tokens: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Cosine of each of cluster k's tokens ([M, D], of unit length) with their mean direction; nan for other masks: [M]."""
    own = labels == k
    cosines = np.full(len(labels), np.nan)
    if own.any():
        mean = tokens[own].mean(0)
        cosines[own] = tokens[own] @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    return cosines


def cards(
    root: str, images: Sequence[ImageRecord], annotations: Sequence[Record], tokens: np.ndarray, count: int
) -> list[ClusterCard]:
    """A card for each cluster.

    Args:
        annotations: of data/instances.json; category_id is the cluster.
        tokens: [M, D] float64, `centred`, of the annotations, in their order.
    """
    known, labels = {i.id: i for i in images}, np.array([a["category_id"] for a in annotations], np.int64)

    def crops(members: Sequence[int]) -> list[tuple[np.ndarray, str]]:
        drawn = []
        for a in (annotations[m] for m in members if annotations[m]["area"]):
            image = known[a["image_id"]]
            drawn.append((pictures.crop(photos.read(root, image), decode(a["segmentation"]), CROP), image.file_name))
        return drawn

    made = []
    for k in track(range(count), "draw clusters", count):
        cosines = similarity(tokens, labels, k)
        order = np.argsort(-cosines, kind="stable")[: int((labels == k).sum())].tolist()
        odd = order[max(TYPICAL, len(order) - ODD) :]
        mean = float(np.nanmean(cosines)) if order else float("nan")
        share = len(order) / max(1, len(annotations))
        made.append(ClusterCard(k, len(order), share, mean, crops(order[:TYPICAL]), crops(odd[::-1])))
    return made


def document(made: Sequence[ClusterCard], clusters: ClusterNames, scheme: pictures.Scheme, file: str) -> bytes:
    """The page, in UTF-8."""
    said = sum(1 for e in clusters.entries.values() if e != type(e)())
    example = "unseg clusters --name 3=dog --merge 5=3 --ignore 7"
    words = f"{len(made)} clusters of {sum(c.size for c in made):,} masks; {file} says something of {said}."
    how = join(["Name, merge or ignore them in that file, or by ", Html(f"<code>{example}</code>"), "; then look here again."])
    lead = Html(f'<p class="lead">{html(words)}</p><p>{how}</p>')
    grid = Html(f'<div class="cards">{join(card(c, clusters, scheme) for c in made)}</div>')
    return page.document("unseg clusters", lead, [Section("clusters", "Clusters", grid)])


def card(c: ClusterCard, clusters: ClusterNames, scheme: pictures.Scheme) -> Html:
    said, fate = clusters.entry(c.id).name, scheme.fate(c.id)
    head = join([page.swatch(scheme.clusters[c.id]), f"{c.id} ", named(said) if said else "", f" ({fate})" if fate else ""])
    alike = "" if np.isnan(c.coherence) else f", coherence {c.coherence:.2f}"
    words = f"{c.size:,} masks, {100 * c.share:.1f}{PERCENT}{alike}"
    return Html(
        f'<article class="card" id="cluster-{c.id}"><h4>{head}</h4><p>{html(words)}</p>'
        f"{row('most typical', c.id, c.typical)}{row('least typical', c.id, c.odd)}</article>"
    )


def row(title: str, k: int, crops: Sequence[tuple[np.ndarray, str]]) -> Html:
    if not crops:
        return Html()
    drawn = join(page.picture(pixels, f"mask of cluster {k} in {name}") for pixels, name in crops)
    return Html(f'<p>{html(title)}</p><div class="crops">{drawn}</div>')
