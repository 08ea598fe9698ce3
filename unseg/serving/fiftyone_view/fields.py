"""What `unseg view` shows of each photograph of a run, without FiftyOne.

Shapes: H rows, W columns of a photograph, h rows and w columns of a box.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unseg.clustering.algorithms import Clustering
from unseg.clustering.naming import ClusterNames
from unseg.core import image_index, instances
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance, Lookup
from unseg.core.label_maps import LabelMaps
from unseg.core.masks import Mask
from unseg.report import cards, comparison
from unseg.serving.labels import source
from unseg.serving.labels.source import LabelSource
from unseg.serving.run import Run

Predict = Callable[[Path], tuple[np.ndarray, np.ndarray]]
ODD = 0.05  # fraction of a cluster's masks that are shown as odd: those farthest from its mean direction


@dataclass(frozen=True)
class Shape:
    """A mined mask or a detection."""

    label: str  # the name of its cluster after merging, "background" or "void"; "unclustered" for a mask without cluster
    box: tuple[float, float, float, float]  # xywh, fractions of the photograph
    mask: np.ndarray  # [h, w] bool: the part of the mask inside the box
    cluster: int | None = None  # before merging
    score: float | None = None  # of a detection, 0..1
    similarity: float | None = None  # -1..1, cosine of a mined mask's descriptor with the mean direction of its cluster
    odd: bool = False  # among the ODD fraction of its cluster that is least similar


@dataclass(frozen=True)
class Photo:
    """A photograph and what the run says about it."""

    image: ImageRecord
    path: Path
    labels: np.ndarray | None  # [H, W] uint8: the label map as `unseg export-labels` writes it; None if the run has none
    masks: list[Shape]
    detections: list[Shape]
    uncertainty: float | None  # 0..1: `disagreement`, or of the segmenter; None where there are not two label maps
    confidence: float | None  # mean score of the detections; None without any
    changed: float | None  # 0..1: fraction of the pixels with another label than before; None where that is not known


class Member(NamedTuple):
    """A mined mask in its cluster."""

    cluster: int
    similarity: float  # -1..1
    odd: bool


@dataclass(frozen=True)
class View:
    """All photographs of a run; `photographs` reads them one at a time."""

    run: Run
    source: LabelSource
    images: list[ImageRecord]
    masks: Lookup[Instance]  # mined
    members: dict[int, Member]  # by id of a mined mask; without those that have no cluster
    before: str  # what `changed` compares with, in words; empty if there is nothing
    changes: dict[str, float]  # by file name

    def photographs(self, score: float, predict: Predict | None = None) -> Iterator[Photo]:
        """In the order of the index.

        Args:
            score: least score of a detection.
            predict: a label map [H, W] and its confidence [H, W] for a photograph, instead of the run's label maps; the
                uncertainty is then 1 - the mean confidence.

        Raises InputError for a damaged artefact.
        """
        steps = self.step_maps()
        folder = self.run.root / self.run.value("data.images", str)
        for image in self.images:
            path = (folder / image.file_name).resolve()
            labels: np.ndarray | None
            uncertainty: float | None
            if predict:
                labels, confidence = predict(path)
                uncertainty = 1 - float(confidence.mean())
            else:
                labels = self.source.label_map(image) if image.file_name in self.source.maps else None
                uncertainty = disagreement(image, steps, self.source.lut)
            found = self.source.detections[image] if self.source.detections else []
            shapes = [
                shape(cluster_title(self.source, d.category_id), image, d.mask, cluster=d.category_id, score=d.score)
                for d in found
                if d.score >= score and d.mask.area
            ]
            scores = [s.score for s in shapes if s.score is not None]
            yield Photo(
                image,
                path,
                labels,
                self.mined(image),
                shapes,
                uncertainty,
                sum(scores) / len(scores) if scores else None,
                self.changes.get(image.file_name),
            )

    def mined(self, image: ImageRecord) -> list[Shape]:
        shapes = []
        for x in (x for x in self.masks[image] if x.mask.area):
            if member := self.members.get(x.id):
                shapes.append(shape(cluster_title(self.source, member.cluster), image, x.mask, **member._asdict()))
            else:
                shapes.append(shape("unclustered", image, x.mask))
        return shapes

    def step_maps(self) -> list[tuple[LabelMaps, LabelMaps]]:
        """Pairs of label maps whose agreement is measured: of the evaluation images, of the training images."""
        final, first = self.run.value("final", str), self.run.value("rounds", list[str])[0]
        pairs = (("predictions/detector", f"predictions/{final}"), (f"labels-{first}", f"labels-{final}"))
        return [(maps(self.run, a), maps(self.run, b)) for a, b in pairs]


def cluster_title(found: LabelSource, cluster: int) -> str:
    """The name of a cluster after merging."""
    return found.names.get(int(found.lut[cluster + 1]), source.VOID)


def maps(run: Run, name: str) -> LabelMaps:
    return LabelMaps(run / f"data/{name}.zip")


def disagreement(image: ImageRecord, pairs: list[tuple[LabelMaps, LabelMaps]], lut: np.ndarray) -> float | None:
    """The uncertainty of a photograph: the fraction of its pixels on which two steps of the pipeline have another label.

    Of an evaluation image the label map of the detections and the final segmentation are compared, of another training image
    its first and its last pseudo-label.
    """
    for first, last in pairs:
        if image in first and image in last and first.path != last.path:
            return float((lut[first[image]] != lut[last[image]]).mean())
    return None


def shape(label: str, image: ImageRecord, mask: Mask, **rest: float | int | bool | None) -> Shape:
    x, y, w, h = (int(v) for v in mask.bbox)
    box = (x / image.width, y / image.height, w / image.width, h / image.height)
    return Shape(label, box, mask.decode()[y : y + h, x : x + w], **rest)  # type: ignore[arg-type]


def read(run: Run, clusters: ClusterNames, against: Run | None = None) -> View:
    """Read what `unseg view` shows of a finished run, but for the label maps and detections.

    Args:
        against: an earlier run; None: the round before the final one, if there is one.

    Raises:
        InputError: the run is not finished, or the two runs have no evaluation image in common.
    """
    found = source.read_run(run, True, clusters)
    folder = run.root / run.value("data.images", str)
    records = image_index.read_images(run / "data/images.json")
    images = [i for i in records if (folder / i.file_name).is_file()]
    if not images:
        raise InputError(f"{folder} has none of the photographs of {run / 'data/images.json'}")
    masks = Lookup(run / "data/masks.json", Instance)
    return View(run, found, images, masks, members(run, records, clusters.count), *changed(run, against, images, found.lut))


def members(run: Run, images: list[ImageRecord], count: int) -> dict[int, Member]:
    """The clustered masks of all images, by id."""
    clustered = instances.read(run / "data/instances.json", Instance, images, clusters=count)
    tokens = cards.read_tokens(run / "data/cls_tokens.npz", clustered, run.group("cluster", Clustering))
    labels = np.array([x.category_id for x in clustered], np.int64)
    cosines, odd = (found.tolist() for found in odd_ones(tokens, labels, count))
    return {x.id: Member(x.category_id, round(c, 4), o) for x, c, o in zip(clustered, cosines, odd, strict=True)}


def odd_ones(tokens: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of each mask [M] with its cluster (-1..1), and whether it is odd there, [M] bool.

    The ODD fraction of a cluster is odd, rounded down: none of a cluster of fewer than 1 / ODD masks. tokens: [M, D], of
    `cards.read_tokens`.
    """
    cosines, odd = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for k in range(count):
        members = np.flatnonzero(labels == k)
        cosines[members] = cards.similarity(tokens, labels, k)[members]
        worst = np.argsort(cosines[members], kind="stable")[: int(ODD * len(members))]
        odd[members[worst]] = True
    return cosines, odd


def changed(run: Run, against: Run | None, images: list[ImageRecord], lut: np.ndarray) -> tuple[str, dict[str, float]]:
    """What is compared with, in words, and by file name the fraction of the pixels whose label is another one."""
    if against:
        runs = comparison.read_runs([against.root, run.root])
        return f"the run {against.root}", comparison.changed_pixels(runs, comparison.common_images(runs))
    names, final = run.value("rounds", list[str]), run.value("final", str)
    place = names.index(final) if final in names else 0
    if not place:
        return "", {}
    changes = {}
    for folder in ("labels-", "predictions/"):  # of an evaluation image its prediction counts
        old, new = maps(run, f"{folder}{names[place - 1]}"), maps(run, f"{folder}{final}")
        for image in (i for i in images if i in old and i in new):
            changes[image.file_name] = float((lut[old[image]] != lut[new[image]]).mean())
    return f"the round {names[place - 1]}", changes
