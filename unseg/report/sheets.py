"""Contact sheets: the outputs of the stages for some images, drawn over them, and some masks of each cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unseg.core.console import track
from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.instances import Detection, Instance, Lookup
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.storage import atomic_write
from unseg.data import photos
from unseg.report import pictures
from unseg.report.page import PERCENT

MIN_SCORE, MAX_DETECTIONS = 0.5, 10  # detections that are drawn on an image
TILE, CROP = 240, 88  # pixels: a picture's longer side, an exemplar's side
MAX_CROPS = 600  # exemplars on the page: the more clusters, the fewer on each card


@dataclass(frozen=True)
class ReportData:
    """The outputs of the stages that the report draws."""

    root: str  # folder of the photographs
    images: list[ImageRecord]
    eval_images: list[ImageRecord]
    train_images: list[ImageRecord]
    rejected: int  # files
    mined: dict[ImageRecord, list[Instance]]
    cluster: dict[int, int]  # by mask id
    detections: Lookup[Detection]
    labels: LabelMaps
    predictions: LabelMaps
    truth: LabelMaps
    classes: list[str]  # background first; empty without truth
    scheme: pictures.Scheme


class Tile(NamedTuple):
    """A picture of a contact sheet; without pixels, `note` gives the reason."""

    head: str
    pixels: np.ndarray | None  # [H, W, 3] uint8
    note: str = ""


class Crop(NamedTuple):
    """A mask cut out of its photograph."""

    pixels: np.ndarray  # [S, S, 3] uint8
    file_name: str


class ClusterCard(NamedTuple):
    """A cluster in numbers and pictures."""

    id: int
    size: int  # masks
    fraction: float  # of all masks
    crops: list[Crop]
    atypical: Sequence[Crop] = ()  # the least typical first
    coherence: float = float("nan")  # mean cosine of its tokens with their mean direction; 1: all the same; nan: no mask


Row = tuple[str, list[Tile]]  # of a contact sheet: the image's file name, and a tile for each step


def contact_sheets(data: ReportData, count: int) -> tuple[list[Row], list[Row]]:
    """At most `count` rows of evaluation images, and as many of images that are for training only."""
    eval_images = set(data.eval_images)
    train_only = [image for image in data.train_images if image not in eval_images]
    eval_rows = contact_rows(data, evenly_spaced(data.eval_images, count), "draw evaluation images")
    return eval_rows, contact_rows(data, evenly_spaced(train_only, count), "draw training images")


def failures(data: ReportData, ious: Sequence[dict[str, Any]], count: int) -> list[Row]:
    """Rows of the evaluation images of lowest mIoU, the worst first; ious: content of an image_iou.json of results/details."""
    image_by_name = {image.file_name: image for image in data.eval_images}
    worst = sorted((r for r in ious if r["iou"] is not None), key=lambda r: (r["iou"], r["file_name"]))[:count]
    rows = contact_rows(data, [image_by_name[r["file_name"]] for r in worst], "draw failures")
    return [(f"{name}: mIoU {100 * r['iou']:.1f}{PERCENT}", tiles) for (name, tiles), r in zip(rows, worst, strict=True)]


def contact_rows(data: ReportData, images: Sequence[ImageRecord], what: str) -> list[Row]:
    """A row of tiles for each image; a column without any picture is left out."""
    rows = [(image.file_name, draw_tiles(data, image)) for image in track(images, what)]
    kept = [any(row[j].pixels is not None for _, row in rows) for j in range(len(rows[0][1]))] if rows else []
    return [(name, [t for t, keep in zip(row, kept, strict=True) if keep]) for name, row in rows]


def draw_tiles(data: ReportData, image: ImageRecord) -> list[Tile]:
    scheme = data.scheme
    photo = pictures.tile(photos.read(data.root, image), TILE)
    names = {k + 1: scheme.title(k) for k in range(len(scheme.clusters))}

    def cluster_tile(head: str, labels: np.ndarray) -> Tile:
        return draw_labels(head, photo, scheme.label_lut[labels], scheme.table(), names)

    def map_tile(head: str, maps: LabelMaps, reason: str) -> Tile:
        return cluster_tile(head, maps[image]) if image in maps else Tile(head, None, reason)

    mined, truth = Tile("mined mask", None, "no mask"), Tile("truth", None, "none for this image")
    if masks := data.mined.get(image):
        labels = np.zeros(image.size, np.uint8)
        for x in masks:
            labels[x.mask.decode()] = data.cluster.get(x.id, -1) + 1
        mined = cluster_tile("mined masks" if len(masks) > 1 else "mined mask", labels)
    if image in data.truth:
        truth = draw_labels("truth", photo, data.truth[image], scheme.truth_table(), dict(enumerate(data.classes)))
    return [
        Tile("photograph", photo, f"{image.width} x {image.height} pixels"),
        mined,
        draw_detections(data, image, photo),
        map_tile("pseudo-label", data.labels, "not a training image"),
        map_tile("final segmentation", data.predictions, "not an evaluation image"),
        truth,
    ]


def draw_labels(
    head: str, photo: np.ndarray, labels: np.ndarray, table: tuple[np.ndarray, np.ndarray], names: dict[int, str]
) -> Tile:
    """A label map [H, W] over its photograph, with the area of each label in words."""
    drawn = pictures.paint(photo, pictures.resize_labels(labels, photo), *table, names)
    return Tile(head, drawn, describe_areas(labels, names))


def draw_detections(data: ReportData, image: ImageRecord, photo: np.ndarray) -> Tile:
    """The detections with a score of at least MIN_SCORE, the highest on top; if there are none, the best one."""
    lut = data.scheme.label_lut
    detections = [d for d in data.detections[image] if lut[d.category_id + 1] not in (0, IGNORE_LABEL)]
    drawn = [d for d in detections if d.score >= MIN_SCORE][:MAX_DETECTIONS] or detections[:1]
    masks = [pictures.resize_labels(d.mask.decode(), photo) for d in drawn]
    labels = [int(lut[d.category_id + 1]) for d in drawn]
    tags = [f"{data.scheme.title(label - 1)} {d.score:.2f}" for label, d in zip(labels, drawn, strict=True)]
    confident = not drawn or drawn[0].score >= MIN_SCORE
    rule = f"score ≥ {MIN_SCORE}" if confident else f"the best one: none has a score of {MIN_SCORE}"
    pixels = pictures.draw_instances(photo, masks, labels, tags, *data.scheme.table())
    return Tile("detections", pixels, f"{len(drawn)} of {len(detections)} ({rule})")


def describe_areas(labels: np.ndarray, names: dict[int, str]) -> str:
    """The area of each label in words: "disc 12 %, void 3 %"."""
    names = {**names, IGNORE_LABEL: "void"}
    counts = np.bincount(labels.ravel(), minlength=256)
    present = np.flatnonzero(counts[1:]) + 1
    parts = [f"{names.get(v, v)} {100 * counts[v] / labels.size:.0f}{PERCENT}" for v in present.tolist()]
    return ", ".join(parts) or "all background"


def crop(root: str, image: ImageRecord, instance: Instance) -> Crop:
    return Crop(pictures.crop(photos.read(root, image), instance.mask.decode(), CROP), image.file_name)


def cluster_cards(data: ReportData, exemplars: int) -> list[ClusterCard]:
    """Masks of each cluster, evenly spaced over the images, so that they are a fair sample."""
    image_by_id = {image.id: image for image in data.images}
    members: dict[int, list[Instance]] = {k: [] for k in range(len(data.scheme.clusters))}
    for x in (x for masks in data.mined.values() for x in masks if x.id in data.cluster):
        members[data.cluster[x.id]].append(x)
    count = max(1, min(exemplars, MAX_CROPS // max(1, len(members))))
    cards = []
    for k, masks in track(members.items(), "draw clusters", len(members)):
        exemplar_masks = evenly_spaced([x for x in masks if x.mask.area], count)
        crops = [crop(data.root, image_by_id[x.image_id], x) for x in exemplar_masks]
        cards.append(ClusterCard(k, len(masks), len(masks) / max(1, len(data.cluster)), crops))
    return cards


def write_sheets(
    folder: Path, eval_rows: Sequence[Row], train_rows: Sequence[Row], cards: Sequence[ClusterCard], scheme: pictures.Scheme
) -> None:
    """The pictures of the page, each kind as one PNG."""
    for name, rows in {"contact-eval": eval_rows, "contact-train": train_rows}.items():
        if rows:
            heads = [t.head for t in rows[0][1]]
            write(
                folder / f"{name}.png", pictures.sheet([[t.pixels for t in tiles] for _, tiles in rows], heads, [""] * len(rows))
            )
    names = [f"{card.id}  {scheme.names[card.id] or ''}" for card in cards]
    write(folder / "clusters.png", pictures.sheet([[c.pixels for c in card.crops] for card in cards], [], names))


def write(path: Path, picture: np.ndarray) -> None:
    with atomic_write(path) as part:
        part.write_bytes(pictures.small_png(picture))
