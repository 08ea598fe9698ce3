"""The data of the report's sections, computed from the outputs of the stages; `templates/sections/` draws them.

metrics: content of a scores.json, linear.json or instances.json of results/details; one with {"needs": ...} has no numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unseg.report import charts, label_free
from unseg.report.charts import Chart
from unseg.report.label_free import Fact
from unseg.report.page import DASH, percent, protocol, scalars
from unseg.report.pictures import Scheme

Record = dict[str, Any]
TABLE_1 = (39.0, 42.0, 45.8, 48.9)  # clustering mIoU on VOC2012 val: ViT masks, + detector, + segmentation model, + CRF


class LegendEntry(NamedTuple):
    colour: np.ndarray
    striped: bool
    name: str | None  # of the class
    cluster: int | None
    cluster_colour: np.ndarray | None = None  # if it differs from the colour of the class


def headline(quality: Record, scores: Record, linear: Record, instances: Record) -> list[Fact]:
    """The first numbers of the page: the scores of the final segmentation, or without truth those of `label_free`."""
    if "miou" not in scores:
        return label_free.headline(quality)
    probe, fit = linear.get("miou"), dict(scalars(instances))
    numbers = [
        ("clustering mIoU", scores["miou"], f"final segmentation, {scores.get('images')} images"),
        ("fit of mined masks", fit.get("masks.mean_iou"), "mean IoU with the object that fits best"),
        ("mask AP50", fit.get("detector.multi.agnostic.AP50"), "detector, all objects, class-agnostic"),
    ]
    facts = [Fact(name, percent(x), meaning) for name, x, meaning in numbers if x is not None]
    return [*facts, Fact("linear probe mIoU", "not measured here" if probe is None else percent(probe), "on frozen features")]


def components(scores: dict[str, Record], human: bool = False) -> dict[str, Any]:
    """The mIoU as each component is added, beside the published one.

    Args:
        scores: metrics by name, in the order of TABLE_1; after them, if `human`, the round that has seen human labels.
    """
    papers = [*TABLE_1[: len(scores) - human], *([DASH] if human else [])]
    rows = [{"name": n, "metrics": metrics, "paper": paper} for (n, metrics), paper in zip(scores.items(), papers, strict=True)]
    described = next((metrics for metrics in scores.values() if protocol(metrics, "miou")), None)
    return {"rows": rows, "described": described, "needs": list(label_free.missing(scores))}


def legend(scheme: Scheme, classes: Sequence[str]) -> list[LegendEntry]:
    """The classes with their clusters, then the clusters that stand for no class; merged clusters are left out."""
    entries = []
    for name, colour in zip(classes[1:], scheme.classes[1:], strict=True):
        cluster = scheme.names.index(name) if name in scheme.names else None
        chosen = None if cluster is None or (scheme.clusters[cluster] == colour).all() else scheme.clusters[cluster]
        entries.append(LegendEntry(colour, False, name, cluster, chosen))
    unmatched = [k for k, name in enumerate(scheme.names) if name is None and not scheme.merge_note(k)]
    return entries + [LegendEntry(scheme.clusters[k], bool(classes), None, k) for k in unmatched]


def classes(
    ious: Sequence[Record], cells: Sequence[Record], scores: Record, scheme: Scheme, steps: dict[str, Sequence[Record]]
) -> dict[str, Any]:
    """IoU and confusion of the classes, from class_iou.json, confusion.json, scores.json; steps: class_iou.json by component."""
    if not ious or not cells:
        return {"rows": [], "scores": scores}
    counts = np.array([cell["pixels"] for cell in cells]).reshape(len(ious), -1)  # [C, C + 1], the last: no class
    predicted = [str(cell["prediction"]) for cell in cells[: counts.shape[1]]]
    rows = []
    for c, row in enumerate(ious):
        true, correct, errors = counts[c].sum(), counts[c, c], np.where(np.arange(counts.shape[1]) == c, 0, counts[c])
        recall, precision = ratio(correct, true), ratio(correct, counts[:, c].sum())
        confused = {"confused_with": predicted[errors.argmax()], "confused_fraction": ratio(errors.max(), true)}
        by_step = [step[c]["iou"] if c < len(step) else None for step in steps.values()]
        rows.append(row | confused | {"recall": recall, "precision": precision, "colour": scheme.classes[c], "by_step": by_step})
    pixels = counts.sum(1, keepdims=True)
    fractions = counts / np.where(pixels > 0, pixels, np.nan)
    return {"rows": rows, "steps": list(steps), "predicted": predicted, "confusion": fractions}


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def curves(trainings: dict[str, dict[str, list[float]]], points: Sequence[Record]) -> list[tuple[str, list[Chart]]]:
    """Titles and charts: each training's numbers over its steps, the loss first, and the precision of detections over recall."""
    histories = [(name, history(columns)) for name, columns in trainings.items()]
    measured = [point for point in points if point["precision"] is not None]
    if measured:
        recall, precision = ([float(point[key]) for point in measured] for key in ("recall", "precision"))
        drawn = charts.curve(recall, precision, "recall", "precision", 1.0)
        histories.append(("Detections, class-agnostic, at IoU 0.5", [drawn]))
    return histories


def history(columns: dict[str, list[float]]) -> list[Chart]:
    steps = columns.get("step") or list(range(len(next(iter(columns.values()), []))))
    names = sorted((name for name in columns if name != "step" and columns[name]), key=lambda name: name != "loss")
    return [charts.curve(steps, columns[name], "step", name) for name in names]
