"""mIoU of the label maps of masks, detector and every round of the segmenter, by each way of matching clusters to classes."""

from pathlib import Path
from typing import Any

import numpy as np

from unseg.core import params, streams
from unseg.core.console import run
from unseg.core.image_index import ImageRecord, eval_images, read_images, train_images
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import write_json
from unseg.evaluation import loading, metrics, protocols

NO_TRUTH = "ground truth: {} has no pixel of a known class in a judged image"
NO_CLASS = "(no class)"  # what pixels of a cluster that stands for none are predicted to be


def main(images: str, truth: str, instances: str, predictions: str, results: str, details: str) -> None:
    k, seed, classes = params.value("cluster.k", int), params.value("seed", int), class_names(truth)
    steps = ["masks", "detector", *params.value("rounds", list[str])]
    known, guesses = LabelMaps(truth, "semantic/"), [LabelMaps(Path(predictions) / f"{step}.zip") for step in steps]
    judged = [image for image in eval_images(images) if image in known]
    found = loading.confusions(judged, known, guesses, len(classes), k + 1)
    if not found[0].sum.any():
        for step in steps:
            write(results, details, step, {"images": 0, "needs": NO_TRUTH.format(truth)}, [], [], [])
        return
    voted = votes(images, truth, instances, len(classes), k + 1)
    about = {"images": len(judged), "clusters": k, "classes": len(classes), "seeds": [seed]}
    texts = {"protocols": protocols.described(protocols.CLUSTERING)}
    for step, counted in zip(steps, found, strict=True):
        scores = protocols.clustering(counted.sum, voted)
        numbers = {name: metrics.rounded(score) for name, score in scores.items()}
        write(results, details, step, numbers | about | texts, *by_class_and_image(counted, classes, judged))


def by_class_and_image(
    counted: loading.Confusions, classes: list[str], judged: list[ImageRecord]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the confusion's cells, of each class's IoU and of each image's mIoU, clusters matched as for miou."""
    assignment = metrics.match(counted.sum, by="iou")
    named = metrics.rename(counted.sum, assignment)  # [C, C + 1]
    shares = named / np.maximum(named.sum(1, keepdims=True), 1)
    matrix = [
        {"truth": name, "prediction": other, "pixels": int(named[c, o]), "share": metrics.rounded(shares[c, o])}
        for c, name in enumerate(classes)
        for o, other in enumerate([*classes, NO_CLASS])
    ]
    ious = metrics.iou(named)
    cluster = {int(c): label - 1 for label, c in enumerate(assignment)}  # of each matched class; -1 is the background label
    rows = [{"class": name, "iou": metrics.rounded(ious[c]), "cluster": cluster.get(c)} for c, name in enumerate(classes)]
    own = (metrics.mean(metrics.iou(metrics.rename(part, assignment))) for part in counted)
    single = [{"file_name": i.file_name, "iou": metrics.rounded(x)} for i, x in zip(judged, own, strict=True)]
    return matrix, rows, single


def votes(images: str, truth: str, instances: str, classes: int, labels: int) -> np.ndarray:
    """What the mined masks of the training images say of the clusters' classes (published MaskDistill)."""
    known: dict[int, ImageRecord] = {image.id: image for image in read_images(images)}
    learned = {image.id for image in train_images(images)}
    mined = loading.checked(instances, streams.stream(instances, "annotations"), known, labels - 1)
    there: list[dict[str, Any]] = loading.objects(truth, learned, shapes=False)["annotations"]
    return protocols.box_votes(there, [m for m in mined if m["image_id"] in learned], classes, labels)


def write(results: str, details: str, step: str, scores: Any, confusion: Any, ious: Any, single: Any) -> None:
    write_json(Path(results) / f"{step}.json", metrics.headline(scores, "miou", "pixel_accuracy"))
    write_json(Path(details) / step / "scores.json", scores)
    write_json(Path(details) / step / "confusion.json", confusion)
    write_json(Path(details) / step / "class_iou.json", ious)
    write_json(Path(details) / step / "image_iou.json", single)


if __name__ == "__main__":
    run(main)
