"""Label maps: pseudo-labels of the training images from sure detections, and two stages' predictions of the judged ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unseg import alarms, params
from unseg.console import InputError, run, track
from unseg.io import photos
from unseg.io.records import VOID, Image, by_image, read_images, read_json, to_judge, to_learn, write_labels
from unseg.segmentation.labels import Aggregation, paint

AGAIN = "make it again from the same data/images.json"


def main(
    images: str, root: str, instances: str, detections: str, labels: str, masks_predictions: str, detector_predictions: str
) -> None:
    p, alarm = params.group("aggregate", Aggregation), params.group("alarms.labels", alarms.Labels)
    certain = replace(p, uncertain="background")  # a prediction says something of every pixel
    mined = replace(certain, shape="mask", threshold=0.0)  # the masks as they are, whatever is made of the detections
    known = {image.id for image in read_images(images)}
    masks = grouped(instances, [{**a, "score": 1.0} for a in read_json(instances)["annotations"]], known)
    found = grouped(detections, read_json(detections), known)
    painted = write(labels, root, to_learn(images), detections, found, p)
    write(masks_predictions, root, to_judge(images), instances, masks, mined)
    write(detector_predictions, root, to_judge(images), detections, found, certain)
    alarm.look(labels, painted)


def grouped(path: str, records: list[dict[str, Any]], known: set[int]) -> dict[int, list[dict[str, Any]]]:
    groups = by_image(records)
    if strange := sorted(groups.keys() - known):
        raise InputError(f"{path}: no image has the id {strange[0]}; {AGAIN}")
    return groups


def write(
    path: str, root: str, images: Sequence[Image], source: str, groups: dict[int, list[dict[str, Any]]], p: Aggregation
) -> list[bool]:
    """Paint one map at a time into the zip; source is the file that the groups come from. Returns: which have an object."""
    painted = []

    def one(image: Image) -> np.ndarray:
        pixels = np.asarray(photos.read(root, image)) if p.shape == "grabcut" and image.id in groups else None
        try:
            own = paint(groups.get(image.id, []), image.size, p, pixels)
        except ValueError as error:
            raise InputError(f"{source}, image {image.id} ({image.file_name}): {error}; {AGAIN}") from None
        painted.append(bool(((own > 0) & (own != VOID)).any()))
        return own

    write_labels(path, ((image.file_name, one(image)) for image in track(images, f"paint {path}")))
    return painted


if __name__ == "__main__":
    run(main)
