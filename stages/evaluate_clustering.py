"""mIoU of the label maps of masks, detector and each round of the segmenter, by each way of matching clusters to classes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unseg.core import params, rounds
from unseg.core.console import run
from unseg.core.image_index import ImageRecord, eval_images, read_images, train_images
from unseg.core.instances import Instance, read
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import write_json
from unseg.evaluation import loading, metrics, protocols

NO_TRUTH = "ground truth: {} has no pixel of a known class in an evaluation image"
NO_CLASS = "(no class)"  # prediction for the pixels of an unmatched cluster


def main(index: str, truth: str, instances: str, predictions: str, results: str, details: str) -> None:
    k, seed, classes = params.value("cluster.k", int), params.value("seed", int), class_names(truth)
    steps, human = ["masks", "detector", *params.value("rounds", list[str])], rounds.human_rounds()
    notes = {step: {"human_labels": 1} if step in human else {} for step in steps}
    true_maps, maps = LabelMaps(truth, "semantic/"), [LabelMaps(Path(predictions) / f"{step}.zip") for step in steps]
    images = [image for image in eval_images(index) if image in true_maps]
    shape = len(classes), k + 1
    confusions = dict(zip(steps, loading.confusions(images, true_maps, maps, *shape), strict=True))
    if not loading.total(confusions["masks"], *shape).any():
        for step in steps:
            write(results, details, step, {"images": 0, "needs": NO_TRUTH.format(truth)} | notes[step], [], [], [])
        return
    mined = read(instances, Instance, read_images(index), train_images(index), clusters=k)
    votes = protocols.box_votes(loading.read_boxes(truth, train_images(index)), mined, *shape)
    about = {"images": len(images), "clusters": k, "classes": len(classes), "seeds": [seed]}
    about |= {"protocols": protocols.to_records(protocols.CLUSTERING)}
    for step in steps:
        counts = loading.total(confusions[step], *shape)
        scores = {name: metrics.rounded(score) for name, score in protocols.clustering(counts, votes).items()}
        assignment = metrics.match(counts, by="iou")
        image_ious = by_image(images, (metrics.clusters_to_classes(c.toarray(), assignment) for c in confusions[step]))
        write(
            results,
            details,
            step,
            scores | about | notes[step],
            *by_class(classes, metrics.clusters_to_classes(counts, assignment), assignment),
            image_ious,
        )


def by_class(classes: list[str], counts: np.ndarray, assignment: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the cells of the confusion [C, C + 1] and of the classes' IoUs; assignment: class of each label."""
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [
        {"truth": name, "prediction": other, "pixels": int(counts[c, o]), "fraction": metrics.rounded(fractions[c, o])}
        for c, name in enumerate(classes)
        for o, other in enumerate([*classes, NO_CLASS])
    ]
    cluster_of = {int(c): label - 1 for label, c in enumerate(assignment)}  # -1 is the background label
    ious = zip(classes, metrics.iou(counts), strict=True)
    return cells, [{"class": n, "iou": metrics.rounded(x), "cluster": cluster_of.get(c)} for c, (n, x) in enumerate(ious)]


def by_image(images: list[ImageRecord], confusions: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Records of the images' mIoUs, from their confusions [C, C + 1]."""
    pairs = zip(images, confusions, strict=True)
    return [{"file_name": image.file_name, "iou": metrics.rounded(metrics.mean(metrics.iou(c)))} for image, c in pairs]


def write(results: str, details: str, step: str, scores: Any, confusion: Any, class_ious: Any, image_ious: Any) -> None:
    write_json(Path(results) / f"{step}.json", metrics.headline(scores, "miou", "pixel_accuracy", "human_labels"))
    contents = {"scores": scores, "confusion": confusion, "class_iou": class_ious, "image_iou": image_ious}
    for name, content in contents.items():
        write_json(Path(details) / step / f"{name}.json", content)


if __name__ == "__main__":
    run(main)
