"""Label maps: pseudo-labels of the training images from sure detections, and two stages' predictions of the judged ones."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from unseg.core import alarms, params, streams
from unseg.core.console import InputError, run, track
from unseg.core.image_index import ImageRecord, eval_images, read_images, train_images
from unseg.core.label_maps import IGNORE_LABEL, write_label_maps
from unseg.data import photos
from unseg.segmentation.pseudo_labels import Aggregation, paint


def main(
    images: str, root: str, instances: str, detections: str, labels: str, masks_predictions: str, detector_predictions: str
) -> None:
    p, alarm = params.group("aggregate", Aggregation), params.group("alarms.labels", alarms.LabelAlarm)
    certain = replace(p, uncertain="background")  # a prediction says something of every pixel
    mined = replace(certain, shape="mask", threshold=0.0)  # the masks as they are, whatever is made of the detections
    known = {image.id for image in read_images(images)}
    painted = write(labels, root, train_images(images), detections, known, p)
    write(masks_predictions, root, eval_images(images), instances, known, mined, "annotations")
    write(detector_predictions, root, eval_images(images), detections, known, certain)
    alarm.look(labels, painted)


def write(
    path: str,
    root: str,
    images: Sequence[ImageRecord],
    source: str,
    known: Collection[int],
    p: Aggregation,
    key: str | None = None,
) -> list[bool]:
    """Paint one map at a time into the zip, from the records of the file `source` (or its list at `key`, which have no score).

    Returns: which have an object.
    """
    painted = []
    found = ({"score": 1.0, **r} if key else r for r in streams.in_order(source, key))

    def maps() -> Iterator[tuple[str, np.ndarray]]:
        for image, own in track(streams.by_image(source, found, images, known), f"paint {path}", len(images)):
            pixels = np.asarray(photos.read(root, image)) if p.shape == "grabcut" and own else None
            try:
                labels = paint(own, image.size, p, pixels)
            except ValueError as error:
                where = f"{source}, image {image.id} ({image.file_name})"
                raise InputError(f"{where}: {error}; {streams.AGAIN}") from None
            painted.append(bool(((labels > 0) & (labels != IGNORE_LABEL)).any()))
            yield image.file_name, labels

    write_label_maps(path, maps())
    return painted


if __name__ == "__main__":
    run(main)
