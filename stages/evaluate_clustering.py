"""mIoU of label maps of anonymous clusters, by each way of matching clusters to classes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unseg import params
from unseg.console import run
from unseg.evaluation import artefacts, metrics, protocols
from unseg.io import streams
from unseg.io.records import Image, Labels, class_names, read_images, to_judge, to_learn, write_json

NO_TRUTH = "ground truth: {} has no pixel of a known class in a judged image"


def main(images: str, truth: str, instances: str, predictions: str, results: str) -> None:
    k, seed, classes = params.value("cluster.k", int), params.value("seed", int), class_names(truth)
    known, guess = Labels(truth, "semantic/"), Labels(predictions)
    judged = [image for image in to_judge(images) if image in known]

    def each() -> Iterable[np.ndarray]:
        return artefacts.confusions(judged, known, guess, len(classes), k + 1)

    counts = sum(each(), np.zeros((len(classes), k + 1), np.int64))
    if not counts.any():
        return write(Path(results), {"images": 0, "needs": NO_TRUTH.format(truth)}, {"classes": [], "matrix": []}, [], [])

    scores = protocols.clustering(counts, votes(images, truth, instances, len(classes), k + 1))
    assignment = metrics.match(counts, by="iou")
    named = metrics.rename(counts, assignment)
    ious = metrics.iou(named)
    cluster = {int(c): label - 1 for label, c in enumerate(assignment)}  # of each matched class; -1 is the background label
    rows = [{"class": name, "iou": metrics.rounded(ious[c]), "cluster": cluster.get(c)} for c, name in enumerate(classes)]
    # A second pass, so that memory does not grow with the number of images.
    own = (metrics.mean(metrics.iou(metrics.rename(part, assignment))) for part in each())
    single = [{"file_name": i.file_name, "iou": metrics.rounded(x)} for i, x in zip(judged, own, strict=True)]
    numbers = {name: metrics.rounded(score) for name, score in scores.items()}
    about = {"images": len(judged), "clusters": k, "classes": len(classes), "seeds": [seed]}
    texts = {"protocols": protocols.described(protocols.CLUSTERING)}
    write(Path(results), numbers | about | texts, {"classes": classes, "matrix": named.tolist()}, rows, single)


def votes(images: str, truth: str, instances: str, classes: int, labels: int) -> np.ndarray:
    """What the mined masks of the training images say of the clusters' classes (published MaskDistill)."""
    known: dict[int, Image] = {image.id: image for image in read_images(images)}
    learned = {image.id for image in to_learn(images)}
    mined = artefacts.checked(instances, streams.stream(instances, "annotations"), known, labels - 1)
    there: list[dict[str, Any]] = artefacts.objects(truth, learned, shapes=False)["annotations"]
    return protocols.box_votes(there, [m for m in mined if m["image_id"] in learned], classes, labels)


def write(results: Path, numbers: Any, confusion: Any, ious: Any, single: Any) -> None:
    write_json(results / "metrics.json", numbers)
    write_json(results / "confusion.json", confusion)
    write_json(results / "class_iou.json", ious)
    write_json(results / "image_iou.json", single)


if __name__ == "__main__":
    run(main)
