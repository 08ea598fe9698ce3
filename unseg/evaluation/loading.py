"""What is judged, read from files and checked against the index of images: truth, masks, detections, label maps.

pycocotools takes masks of another size, and numpy labels of another model, without a word: here they are errors that name
the file and the image.

Shapes: C classes and K labels, background counted in both.
"""

import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps
from unseg.core.streams import AGAIN
from unseg.evaluation import metrics

Record = dict[str, Any]


def objects(truth: str, of: Collection[int] | None = None, shapes: bool = True) -> Record:
    """The COCO records of the objects in data/truth.zip; no images where there is no instance truth.

    Args:
        of: ids of the images whose objects are wanted; None: of all.
        shapes: whether their segmentations are wanted; COCO's take a gigabyte.

    Raises:
        InputError: not such a file, or an object of a class that it does not list.
    """

    def wanted(record: Record) -> Record | None:
        if "image_id" not in record:
            return record
        if not shapes:
            record.pop("segmentation", None)
        return record if of is None or record["image_id"] in of else None

    try:
        with zipfile.ZipFile(truth) as archive:
            if "instances.json" not in archive.namelist():
                return {"images": [], "annotations": [], "categories": []}
            found = dict(json.loads(archive.read("instances.json"), object_hook=wanted))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{truth} cannot be read ({error}); make it again with `dvc repro prepare`") from None
    found["annotations"] = [o for o in found["annotations"] if o is not None]
    classes = max((category["id"] for category in found["categories"]), default=0)
    for c in {o["category_id"] for o in found["annotations"]}:
        if not 1 <= c <= classes:
            raise InputError(f"{truth}: an object has the class {c}; it may have 1 to {classes}; make it again")
    return found


def checked(path: str, records: Iterable[Record], known: dict[int, ImageRecord], clusters: int | None = None) -> Iterator[Record]:
    """The records, one at a time, all of known images, of their sizes, and of clusters 0..clusters-1 (None: of any).

    Raises:
        InputError: one that is not.
    """
    for record in records:
        if missing := {"image_id", "category_id", "segmentation", "bbox"} - record.keys():
            raise InputError(f"{path}: a record has no {sorted(missing)[0]}; {AGAIN}")
        image = known.get(record["image_id"])
        if image is None:
            raise InputError(f"{path}: no image has the id {record['image_id']}; {AGAIN}")
        if tuple(record["segmentation"]["size"]) != image.size:
            sizes = f"{record['segmentation']['size']}, {image.file_name} is {list(image.size)} (rows, columns)"
            raise InputError(f"{path}: a mask is {sizes}; {AGAIN}")
        if record["category_id"] < 0 or (clusters is not None and record["category_id"] >= clusters):
            most = "at least 0" if clusters is None else f"from 0 to {clusters - 1}"
            raise InputError(f"{path}: {image.file_name} has cluster {record['category_id']}; it must be {most}; {AGAIN}")
        yield record


class Confusions:
    """The confusions [C, K] of many images, in their order; only the cells that are not 0 are held."""

    def __init__(self, classes: int, labels: int) -> None:
        self.shape = classes, labels
        self.cells: list[tuple[np.ndarray, np.ndarray]] = []  # of each image: places in the flat [C K], and pixels there
        self.sum = np.zeros(self.shape, np.int64)  # [C, K], of all images

    def append(self, confusion: np.ndarray) -> None:
        places = np.flatnonzero(confusion)
        self.cells.append((places.astype(np.uint16), confusion.flat[places].astype(np.uint32)))  # labels are bytes
        self.sum += confusion

    def __iter__(self) -> Iterator[np.ndarray]:
        for places, pixels in self.cells:
            confusion = np.zeros(self.shape, np.int64)
            confusion.flat[places] = pixels
            yield confusion


def confusions(
    judged: list[ImageRecord], truth: LabelMaps, guesses: Sequence[LabelMaps], classes: int, labels: int
) -> list[Confusions]:
    """Each guess against the truth; each map is read once.

    Raises:
        InputError: a map that is missing, of another size, or has a label that there is not.
    """
    found = [Confusions(classes, labels) for _ in guesses]
    for image in track(judged, "compare"):
        right = truth[image]
        for guess, into in zip(guesses, found, strict=True):
            try:
                into.append(metrics.confusion(right, guess[image], classes, labels))
            except ValueError as error:
                both = f"truth in {truth.path}, prediction in {guess.path}"
                raise InputError(f"{image.file_name}: {error}; {both}: make them again with this cluster.k") from None
    return found
