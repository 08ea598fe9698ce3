"""Ground truth and label maps for the evaluation, read from files and checked against the image index.

Shapes: C classes and K labels, background counted in both.
"""

import json
import zipfile
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from unseg.core import instances
from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.label_maps import LabelMaps
from unseg.evaluation import metrics
from unseg.evaluation.metrics import TruthBox

SparseMatrix = Any  # scipy.sparse.coo_array; scipy takes half a second to import


class Truth(NamedTuple):
    objects: list[Instance]  # category_id is the class, 1..C-1
    images: set[int]  # ids of the images with instance ground truth
    classes: int  # C - 1


def read_objects(truth: str, images: Collection[ImageRecord]) -> Truth:
    """The objects of the images in data/truth.zip; no objects if the file has no instances.

    Raises:
        InputError: an unreadable file, an invalid object, or an object of a class that the file does not list.
    """
    content, classes = read_truth(truth, images, lambda x: x)
    objects = metrics.group_by_image(content["annotations"])
    for image in images:
        instances.check_masks(truth, objects.get(image.id, []), image)
    return Truth(content["annotations"], {record["id"] for record in content["images"]}, classes)


def read_boxes(truth: str, images: Collection[ImageRecord]) -> list[TruthBox]:
    """As `read_objects`, without the masks."""
    content, _ = read_truth(truth, images, lambda x: TruthBox(x.image_id, x.category_id, x.bbox))
    return list(content["annotations"])


def read_truth(truth: str, images: Collection[ImageRecord], keep: Callable[[Instance], Any]) -> tuple[dict[str, Any], int]:
    """The content of instances.json and the number of classes; `keep` converts each object during parsing, to save memory."""
    image_by_id = {image.id: image for image in images}

    def convert(record: dict[str, Any]) -> Any:
        if "image_id" not in record:
            return record
        image = image_by_id.get(record["image_id"])
        return None if image is None else keep(instances.parse(truth, Instance, record, image))

    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    try:
        with zipfile.ZipFile(truth) as archive:
            if "instances.json" in archive.namelist():
                content = json.loads(archive.read("instances.json"), object_hook=convert)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{truth} cannot be read ({error}); make it again with `dvc repro prepare`") from None
    content["annotations"] = [x for x in content["annotations"] if x is not None]
    classes = max((category["id"] for category in content["categories"]), default=0)
    for c in {x.category_id for x in content["annotations"]}:
        if not 1 <= c <= classes:
            raise InputError(f"{truth}: an object has the class {c}; it may have 1 to {classes}; make it again")
    return content, classes


def confusions(
    images: list[ImageRecord], truth: LabelMaps, predictions: Sequence[LabelMaps], classes: int, labels: int
) -> list[list[SparseMatrix]]:
    """The confusions [C, K] of the images, for each of the predictions. Raises InputError for a missing or unfitting map."""
    from scipy.sparse import coo_array  # dense matrices of COCO's images would take gigabytes

    matrices: list[list[SparseMatrix]] = [[] for _ in predictions]
    for image in track(images, "compare"):
        truth_map = truth[image]
        for prediction, stored in zip(predictions, matrices, strict=True):
            try:
                confusion = metrics.confusion(truth_map, prediction[image], classes, labels)
            except ValueError as error:
                files = f"truth in {truth.path}, prediction in {prediction.path}"
                raise InputError(f"{image.file_name}: {error}; {files}: make them again with this cluster.k") from None
            stored.append(coo_array(confusion))
    return matrices


def total(confusions: Sequence[SparseMatrix], classes: int, labels: int) -> np.ndarray:
    """The sum of the confusions of all images, [C, K]."""
    counts = np.zeros((classes, labels), np.int64)
    for confusion in confusions:
        np.add.at(counts, confusion.coords, confusion.data)
    return counts
