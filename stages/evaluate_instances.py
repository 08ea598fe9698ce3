"""COCO mask AP of the mined masks and of the detector's, by each protocol, and the fit of the mined masks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unseg.core import params, streams
from unseg.core.console import run
from unseg.core.image_index import eval_images, read_images
from unseg.core.storage import write_json
from unseg.evaluation import loading, metrics, protocols

NO_TRUTH = "ground truth: {} has no object in a judged image"


def main(images: str, truth: str, masks: str, instances: str, detections: str, results: str, details: str, curve: str) -> None:
    known, seed = {image.id: image for image in read_images(images)}, params.value("seed", int)
    asked = {image.id for image in eval_images(images)}
    truths = loading.objects(truth, asked)
    judged = asked & {image["id"] for image in truths["images"]}

    def load(path: str, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"score": 1.0, **r} for r in loading.checked(path, records, known) if r["image_id"] in judged]

    objects = load(truth, truths["annotations"])
    mined = load(masks, streams.stream(masks, "annotations"))
    initial = load(instances, streams.stream(instances, "annotations"))
    found = load(detections, streams.stream(detections))
    if not metrics.countable(objects):
        write_json(details, {"images": 0, "needs": NO_TRUTH.format(truth)})
        write_json(curve, [])
        write_json(Path(results) / "masks.json", {})
        write_json(Path(results) / "detector.json", {})
        return

    classes = max((category["id"] for category in truths["categories"]), default=0)
    quality = {name: metrics.rounded(x) for name, x in metrics.mask_quality(objects, mined).items()}
    initial_scores, _ = judge(objects, initial, classes)
    scores, precision = judge(objects, found, classes)
    about = {"images": len(judged), "seeds": [seed], "protocols": protocols.described(protocols.INSTANCES)}
    write_json(details, {"masks": quality | initial_scores, "detector": scores} | about)
    mined_scores = metrics.headline(quality | initial_scores["multi"]["agnostic"], "mean_iou", "corloc", "AP50")
    write_json(Path(results) / "masks.json", mined_scores)
    write_json(Path(results) / "detector.json", metrics.headline(scores["multi"]["agnostic"], "AP50", "AP", "AR@100"))
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
        aware, _ = metrics.average_precision(there, metrics.class_names_of_clusters(these, assignment), aware=True)
        settings = {"agnostic": agnostic, "aware": aware}
        scores[mode] = {s: {name: metrics.rounded(x) for name, x in numbers.items()} for s, numbers in settings.items()}
        scores[mode]["objects"] = sum(map(len, metrics.countable(there).values()))
    return scores, curves["multi"]


if __name__ == "__main__":
    run(main)
