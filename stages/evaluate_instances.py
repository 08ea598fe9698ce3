"""COCO mask AP of the mined masks and of the detections, by each protocol, and the fit of the mined masks."""

from pathlib import Path
from typing import Any

import numpy as np

from unseg.core import params
from unseg.core.console import run
from unseg.core.image_index import eval_images, read_images
from unseg.core.instances import Detection, Instance, as_detection, read
from unseg.core.storage import write_json
from unseg.evaluation import loading, metrics, protocols

NO_TRUTH = "ground truth: {} has no object in an evaluation image"


def main(index: str, truth: str, masks: str, instances: str, detections: str, results: str, details: str, curve: str) -> None:
    all_images, seed = read_images(index), params.value("seed", int)
    objects, with_truth, classes = loading.read_objects(truth, eval_images(index))
    images = [image for image in eval_images(index) if image.id in with_truth]
    mined = [as_detection(x) for x in read(masks, Instance, all_images, images)]
    clustered = [as_detection(x) for x in read(instances, Instance, all_images, images)]
    found = read(detections, Detection, all_images, images)
    if not metrics.without_crowds(objects):
        write_json(details, {"images": 0, "needs": NO_TRUTH.format(truth)})
        write_json(curve, [])
        for name in ("masks", "detector"):
            write_json(Path(results) / f"{name}.json", {})
        return

    quality = {name: metrics.rounded(x) for name, x in metrics.mask_quality(objects, mined).items()}
    mask_scores, _ = evaluate(objects, clustered, classes)
    scores, precision = evaluate(objects, found, classes)
    about = {"images": len(images), "seeds": [seed], "protocols": protocols.to_records(protocols.INSTANCES)}
    write_json(details, {"masks": quality | mask_scores, "detector": scores} | about)
    mask_headline = metrics.headline(quality | mask_scores["multi"]["agnostic"], "mean_iou", "corloc", "AP50")
    write_json(Path(results) / "masks.json", mask_headline)
    write_json(Path(results) / "detector.json", metrics.headline(scores["multi"]["agnostic"], "AP50", "AP", "AR@100"))
    steps = zip(np.linspace(0, 1, len(precision)), precision, strict=True)
    write_json(curve, [{"recall": round(float(r), 2), "precision": metrics.rounded(p)} for r, p in steps])


def evaluate(objects: list[Instance], detections: list[Detection], classes: int) -> tuple[dict[str, Any], np.ndarray]:
    """AP by mode and class setting, and the precision over recall of all detections, class-agnostic, at IoU 0.5."""
    clusters = 1 + max((d.category_id for d in detections), default=0)
    assignment = metrics.match(metrics.object_counts(objects, detections, classes, clusters), by="accuracy")
    modes = {"multi": (objects, detections), "single": metrics.single_object(objects, detections)}
    scores: dict[str, Any] = {}
    curves = {}
    for mode, (truth, predictions) in modes.items():
        agnostic, curves[mode] = metrics.average_precision(truth, predictions, class_aware=False)
        with_classes = metrics.class_names_of_clusters(predictions, assignment)
        aware, _ = metrics.average_precision(truth, with_classes, class_aware=True)
        settings = {"agnostic": agnostic, "aware": aware}
        scores[mode] = {s: {name: metrics.rounded(x) for name, x in numbers.items()} for s, numbers in settings.items()}
        scores[mode]["objects"] = len(metrics.without_crowds(truth))
    return scores, curves["multi"]


if __name__ == "__main__":
    run(main)
