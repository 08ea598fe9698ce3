"""mIoU of label maps of anonymous clusters, by each way of matching clusters to classes."""

from pathlib import Path

import numpy as np

from unseg import params
from unseg.console import InputError, run, track
from unseg.evaluation import metrics
from unseg.io.records import Labels, class_names, to_judge, write_json

PROTOCOL = (
    "all labels, background included, matched one to one to all classes on the pixels of the judged images, for the best "
    "sum of IoU (Hungarian); mean over the classes that have pixels there, void left out"
)
NO_TRUTH = "ground truth: {} has no pixel of a known class in a judged image"


def main(images: str, truth: str, predictions: str, results: str) -> None:
    k = params.value("cluster.k", int)
    classes = class_names(truth)
    counts, judged = count(images, truth, predictions, len(classes), k + 1)
    if not counts.any():
        return write(Path(results), {"images": 0, "needs": NO_TRUTH.format(truth)}, {"classes": [], "matrix": []}, [])

    assignment = metrics.match(counts, by="iou")
    named = metrics.rename(counts, assignment)
    ious = metrics.iou(named)
    others = {
        "miou_accuracy_matching": metrics.match(counts, by="accuracy"),
        "miou_background_fixed": metrics.match(counts, by="iou", fixed_background=True),
        "miou_majority": metrics.majority(counts),
    }
    scores = {name: metrics.mean(metrics.iou(metrics.rename(counts, other))) for name, other in others.items()}
    scores |= {"miou": metrics.mean(ious), "pixel_accuracy": metrics.pixel_accuracy(named)}
    about = {"images": judged, "clusters": k, "classes": len(classes), "protocol": PROTOCOL}
    cluster = {int(c): label - 1 for label, c in enumerate(assignment)}  # of each matched class; -1 is the background label
    rows = [{"class": name, "iou": metrics.rounded(ious[c]), "cluster": cluster.get(c)} for c, name in enumerate(classes)]
    numbers = {name: metrics.rounded(score) for name, score in scores.items()}
    write(Path(results), numbers | about, {"classes": classes, "matrix": named.tolist()}, rows)


def count(images: str, truth: str, predictions: str, classes: int, labels: int) -> tuple[np.ndarray, int]:
    """The confusion [classes, labels] over the judged images that have a semantic map, and how many they are."""
    known, guessed = Labels(truth, "semantic/"), Labels(predictions)
    judged = [image for image in to_judge(images) if image in known]
    counts = np.zeros((classes, labels), np.int64)
    for image in track(judged, "compare"):
        try:
            counts += metrics.confusion(known[image], guessed[image], classes, labels)
        except ValueError as error:
            both = f"truth in {truth}, prediction in {predictions}"
            raise InputError(f"{image.file_name}: {error}; {both}: make them again with this cluster.k") from None
    return counts, len(judged)


def write(results: Path, numbers: dict, confusion: dict, ious: list) -> None:  # type: ignore[type-arg]
    write_json(results / "metrics.json", numbers)
    write_json(results / "confusion.json", confusion)
    write_json(results / "class_iou.json", ious)


if __name__ == "__main__":
    run(main)
