"""Paint pseudo-labels of the train images from detections or masks, and predictions of the eval images from both."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from unseg.core import alarms, params
from unseg.core.console import run, track
from unseg.core.image_index import ImageRecord, eval_images, read_images, train_images
from unseg.core.instances import Detection, Instance, as_detection, read_by_image
from unseg.core.label_maps import IGNORE_LABEL, write_label_maps
from unseg.data import photos
from unseg.segmentation.pseudo_labels import Aggregation, paint

MAX_CLUSTERS = IGNORE_LABEL - 1  # that fit beside background and the ignore label


def main(
    index: str, images: str, instances: str, detections: str, labels: str, mask_predictions: str, detector_predictions: str
) -> None:
    p, alarm = params.group("aggregate", Aggregation), params.group("alarms.labels", alarms.LabelAlarm)
    certain = replace(p, uncertain="background")  # a prediction has a label for each pixel
    unchanged = replace(certain, shape="mask", threshold=0.0)  # mined masks, independent of the settings for detections
    records, train, evaluation = read_images(index), train_images(index), eval_images(index)

    def mined(images: list[ImageRecord]) -> Iterator[tuple[ImageRecord, list[Detection]]]:
        for image, objects in read_by_image(instances, Instance, records, images, MAX_CLUSTERS):
            yield image, [as_detection(x) for x in objects]

    detected_train = read_by_image(detections, Detection, records, train, MAX_CLUSTERS)
    has_object = write(labels, images, len(train), mined(train) if p.source == "masks" else detected_train, p)
    write(mask_predictions, images, len(evaluation), mined(evaluation), unchanged)
    detected = read_by_image(detections, Detection, records, evaluation, MAX_CLUSTERS)
    write(detector_predictions, images, len(evaluation), detected, certain)
    alarm.check(labels, has_object)


def write(
    path: str, folder: str, count: int, by_image: Iterable[tuple[ImageRecord, list[Detection]]], p: Aggregation
) -> list[bool]:
    """Paint one map at a time into a zip. Returns for each of the `count` maps whether it has an object."""
    has_object = []

    def maps() -> Iterator[tuple[str, np.ndarray]]:
        for image, detections in track(by_image, f"paint {path}", count):
            pixels = np.asarray(photos.read(folder, image)) if p.shape == "grabcut" and detections else None
            labels = paint(detections, image.size, p, pixels)
            has_object.append(bool(((labels > 0) & (labels != IGNORE_LABEL)).any()))
            yield image.file_name, labels

    write_label_maps(path, maps())
    return has_object


if __name__ == "__main__":
    run(main)
