"""Contact sheets and cluster cards: what each stage made of some images, laid over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unseg.core import streams
from unseg.core.console import track
from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.rle import decode
from unseg.core.storage import atomic_write
from unseg.data import photos
from unseg.report import pictures
from unseg.report.page import PERCENT

Record = dict[str, Any]
SURE, MOST = 0.5, 10  # detections that are drawn and compared: those at least this sure, of an image at most so many
TILE, CROP = 240, 88  # pixels: a picture's longer side, an exemplar's side
CROPS = 600  # exemplars on the page, at the most: the more clusters, the fewer on each card


@dataclass(frozen=True)
class ReportData:
    """What the stages made."""

    root: str  # folder of the photographs
    images: list[ImageRecord]
    judged: list[ImageRecord]
    learned: list[ImageRecord]
    rejected: int  # files that are no photographs
    mined: dict[int, list[Record]]  # annotations by image id
    cluster: dict[int, int]  # of each mined mask, by annotation id
    detections: dict[int, list[Record]] | streams.Lookup
    labels: LabelMaps
    predictions: LabelMaps
    truth: LabelMaps
    classes: list[str]  # background first; empty without truth
    scheme: pictures.Scheme  # of the clusters and classes


class Tile(NamedTuple):
    """A picture of a contact sheet; without pixels, `note` says why there is none."""

    head: str
    pixels: np.ndarray | None  # [H, W, 3] uint8
    note: str = ""


class SheetCard(NamedTuple):
    """A cluster: masks it has, their share of all, the class it stands for, and some of them."""

    id: int
    size: int
    share: float
    name: str | None
    crops: list[tuple[np.ndarray, str]]  # pixels [S, S, 3] uint8, and the file they are from


Row = tuple[str, list[Tile]]  # of a contact sheet: the image's file name, and a tile for each step


def contacts(made: ReportData, count: int) -> tuple[list[Row], list[Row]]:
    """At most `count` rows of judged images, and as many of those that are only learned from."""
    seen = set(made.judged)
    judged = contact(made, evenly_spaced(made.judged, count), "draw judged")
    return judged, contact(made, evenly_spaced([i for i in made.learned if i not in seen], count), "draw learned")


def failures(made: ReportData, ious: Sequence[Record], count: int) -> list[Row]:
    """Rows of the judged images of lowest mIoU, the worst first; ious: content of an image_iou.json of results/details."""
    known = {image.file_name: image for image in made.judged}
    worst = sorted((r for r in ious if r["iou"] is not None), key=lambda r: (r["iou"], r["file_name"]))[:count]
    rows = contact(made, [known[r["file_name"]] for r in worst], "draw failures")
    return [(f"{name}: mIoU {100 * r['iou']:.1f}{PERCENT}", tiles) for (name, tiles), r in zip(rows, worst, strict=True)]


def contact(made: ReportData, images: Sequence[ImageRecord], what: str) -> list[Row]:
    """A row of tiles for each image; a step that none of them went through has no column."""
    rows = [(image.file_name, tiles(made, image)) for image in track(images, what)]
    kept = [any(row[j].pixels is not None for _, row in rows) for j in range(len(rows[0][1]))] if rows else []
    return [(name, [t for t, keep in zip(row, kept, strict=True) if keep]) for name, row in rows]


def tiles(made: ReportData, image: ImageRecord) -> list[Tile]:
    photo = pictures.tile(photos.read(made.root, image), TILE)
    table, truth_table = made.scheme.table(), made.scheme.truth_table()
    names, becomes = {k + 1: made.scheme.title(k) for k in range(len(made.scheme.clusters))}, made.scheme.label_lut

    def drawn(head: str, labels: np.ndarray, table: tuple[np.ndarray, np.ndarray], names: dict[int, str]) -> Tile:
        return Tile(head, pictures.paint(photo, pictures.fit(labels, photo), *table, names), shares(labels, names))

    def mapped(head: str, maps: LabelMaps, table: tuple[np.ndarray, np.ndarray], names: dict[int, str], absent: str) -> Tile:
        if image not in maps:
            return Tile(head, None, absent)
        return drawn(head, maps[image] if maps is made.truth else becomes[maps[image]], table, names)

    mined = Tile("mined mask", None, "none was found")
    if there := made.mined.get(image.id, []):
        one_map = sum(decode(a["segmentation"]) * becomes[made.cluster.get(a["id"], -1) + 1] for a in there)  # they lie apart
        mined = drawn("mined mask" + "s" * (len(there) > 1), np.asarray(one_map), table, names)
    return [
        Tile("photograph", photo, f"{image.width} x {image.height} pixels"),
        mined,
        detected(made, image, photo),
        mapped("pseudo-label", made.labels, table, names, "is not learned from"),
        mapped("final segmentation", made.predictions, table, names, "is not judged"),
        mapped("truth", made.truth, truth_table, dict(enumerate(made.classes)), "none for this image"),
    ]


def detected(made: ReportData, image: ImageRecord, photo: np.ndarray) -> Tile:
    """The detections with a score of at least SURE, the highest on top; of an image without any, its best one."""
    found = made.detections.get(image.id, [])
    found = [d for d in found if made.scheme.label_lut[d["category_id"] + 1] not in (0, IGNORE_LABEL)]
    drawn = [d for d in found if d["score"] >= SURE][:MOST] or found[:1]
    masks = [pictures.fit(decode(d["segmentation"]), photo) for d in drawn]
    labels = [int(made.scheme.label_lut[d["category_id"] + 1]) for d in drawn]
    names = [made.scheme.title(label - 1) for label in labels]
    tags = [f"{name} {d['score']:.2f}" for name, d in zip(names, drawn, strict=True)]
    rule = f"score ≥ {SURE}" if not drawn or drawn[0]["score"] >= SURE else f"the best one: none has a score of {SURE}"
    note = f"{len(drawn)} of {len(found)} ({rule})"
    return Tile("detections", pictures.boxed(photo, masks, labels, tags, *made.scheme.table()), note)


def shares(labels: np.ndarray, names: dict[int, str]) -> str:
    """What covers an image, in words: "disc 12 %, void 3 %"."""
    values, counts = np.unique(labels, return_counts=True)
    known = {**names, IGNORE_LABEL: "void"}
    said = [
        f"{known.get(v, v)} {100 * n / labels.size:.0f}{PERCENT}"
        for v, n in zip(values.tolist(), counts.tolist(), strict=True)
        if v
    ]
    return ", ".join(said) or "all background"


def cluster_cards(made: ReportData, exemplars: int) -> list[SheetCard]:
    """Of each cluster, masks evenly spaced over the images: what is typical, not what is best."""
    known = {image.id: image for image in made.images}
    members: dict[int, list[Record]] = {k: [] for k in range(len(made.scheme.clusters))}
    for a in (a for found in made.mined.values() for a in found if a["id"] in made.cluster):
        members[made.cluster[a["id"]]].append(a)
    each, cards = max(1, min(exemplars, CROPS // max(1, len(members)))), []
    for k, own in track(members.items(), "draw clusters", len(members)):
        crops = []
        for a in evenly_spaced([a for a in own if a["area"]], each):
            image = known[a["image_id"]]
            crops.append((pictures.crop(photos.read(made.root, image), decode(a["segmentation"]), CROP), image.file_name))
        cards.append(SheetCard(k, len(own), len(own) / max(1, len(made.cluster)), made.scheme.names[k], crops))
    return cards


def write_sheets(folder: Path, judged: Sequence[Row], learned: Sequence[Row], cards: Sequence[SheetCard]) -> None:
    """The pictures of the page, each kind as one file."""
    for name, rows in {"contact-judged.png": judged, "contact-train.png": learned}.items():
        if rows:
            heads = [t.head for t in rows[0][1]]
            sheet = pictures.sheet([[t.pixels for t in tiles] for _, tiles in rows], heads, [""] * len(rows))
            write(folder / name, pictures.small_png(sheet))
    names = [f"{card.id}  {card.name or ''}" for card in cards]
    sheet = pictures.sheet([[pixels for pixels, _ in card.crops] for card in cards], [], names)
    write(folder / "clusters.png", pictures.small_png(sheet))


def write(path: Path, content: bytes) -> None:
    with atomic_write(path) as part:
        part.write_bytes(content)
