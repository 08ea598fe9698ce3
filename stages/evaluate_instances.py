"""COCO mask AP of the mined masks and of the detector's, by each protocol, and the fit of the mined masks."""

import json
import zipfile
from typing import Any

import numpy as np

from unseg.console import InputError, run
from unseg.evaluation import metrics
from unseg.io.records import Image, read_images, read_json, to_judge, write_json

PROTOCOL = (
    "COCO mask AP. multi: all detections; single: the surest of an image against the object of largest box IoU, images "
    "without a detection left out; agnostic: classes do not matter; aware: clusters matched one to one to classes by the "
    "number of objects that each finds in the judged images (Hungarian)"
)
NO_TRUTH = "ground truth: {} has no object in a judged image"


def main(images: str, truth: str, masks: str, instances: str, detections: str, results: str, curve: str) -> None:
    known = {image.id: image for image in read_images(images)}
    truths = read_truth(truth)
    judged = {image.id for image in to_judge(images)} & {image["id"] for image in truths["images"]}

    def load(path: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"score": 1.0, **r} for r in checked(path, records, known) if r["image_id"] in judged]

    objects = load(truth, truths["annotations"])
    mined = load(masks, read_json(masks)["annotations"])
    initial = load(instances, read_json(instances)["annotations"])
    found = load(detections, read_json(detections))
    if not metrics.countable(objects):
        write_json(results, {"images": 0, "needs": NO_TRUTH.format(truth)})
        return write_json(curve, [])

    classes = max((category["id"] for category in truths["categories"]), default=0)
    for c in {o["category_id"] for o in objects}:
        if not 1 <= c <= classes:
            raise InputError(f"{truth}: an object has the class {c}; it may have 1 to {classes}; make it again")
    quality = {name: metrics.rounded(x) for name, x in metrics.mask_quality(objects, mined).items()}
    initial_scores, _ = judge(objects, initial, classes)
    scores, precision = judge(objects, found, classes)
    about = {"images": len(judged), "protocol": PROTOCOL}
    write_json(results, {"masks": quality | initial_scores, "detector": scores} | about)
    steps = zip(np.linspace(0, 1, len(precision)), precision, strict=True)
    write_json(curve, [{"recall": round(float(r), 2), "precision": metrics.rounded(p)} for r, p in steps])


def judge(objects: list[dict[str, Any]], found: list[dict[str, Any]], classes: int) -> tuple[dict[str, Any], np.ndarray]:
    """AP by mode and class setting, and the precision over recall of all detections, class-agnostic, at IoU 0.5."""
    clusters = 1 + max((d["category_id"] for d in found), default=0)
    assignment = metrics.match(metrics.object_counts(objects, found, classes, clusters), by="accuracy")
    scores: dict[str, Any] = {}
    curves = {}
    for mode, (there, these) in {"multi": (objects, found), "single": metrics.single(objects, found)}.items():
        agnostic, curves[mode] = metrics.average_precision(there, these, aware=False)
        aware, _ = metrics.average_precision(there, metrics.name_clusters(these, assignment), aware=True)
        settings = {"agnostic": agnostic, "aware": aware}
        scores[mode] = {s: {name: metrics.rounded(x) for name, x in numbers.items()} for s, numbers in settings.items()}
        scores[mode]["objects"] = sum(map(len, metrics.countable(there).values()))
    return scores, curves["multi"]


def read_truth(truth: str) -> dict[str, Any]:
    """The COCO records of the objects; no images where there is no instance truth."""
    try:
        with zipfile.ZipFile(truth) as archive:
            if "instances.json" not in archive.namelist():
                return {"images": [], "annotations": [], "categories": []}
            return dict(json.loads(archive.read("instances.json")))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{truth} cannot be read ({error}); make it again with `dvc repro prepare`") from None


def checked(path: str, records: list[dict[str, Any]], known: dict[int, Image]) -> list[dict[str, Any]]:
    """The records, all of them of known images and of their sizes (pycocotools takes other sizes without a word)."""
    for record in records:
        image = known.get(record["image_id"])
        if image is None:
            raise InputError(f"{path}: no image has the id {record['image_id']}; make it again from the same data/images.json")
        if tuple(record["segmentation"]["size"]) != image.size:
            sizes = f"{record['segmentation']['size']}, {image.file_name} is {list(image.size)} (rows, columns)"
            raise InputError(f"{path}: a mask is {sizes}; make it again from the same data/images.json")
    return records


if __name__ == "__main__":
    run(main)
