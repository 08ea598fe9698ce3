"""The data of the report's sections, computed from what the stages wrote; `templates/sections/` draws them.

metrics: content of a scores.json, linear.json or instances.json of results/details; one with {"needs": ...} has no numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unseg.report import charts, label_free
from unseg.report.charts import Chart
from unseg.report.label_free import Fact
from unseg.report.page import percent, protocol, scalars
from unseg.report.pictures import Scheme

Record = dict[str, Any]
TABLE_1 = (39.0, 42.0, 45.8, 48.9)  # clustering mIoU on VOC2012 val: ViT masks, + detector, + segmentation model, + CRF


class Component(NamedTuple):
    """A row of the paper's Table 1."""

    name: str
    metrics: Record
    paper: float  # mIoU, per cent
    gain: float | None  # of mIoU over the row before


class LegendEntry(NamedTuple):
    colour: np.ndarray
    striped: bool
    name: str | None  # of the class
    cluster: int | None
    cluster_colour: np.ndarray | None = None  # if it is not the class's


class ClassRow(NamedTuple):
    """How well a class is predicted; fractions, None where there are no pixels."""

    name: str
    colour: np.ndarray
    iou: float | None
    recall: float | None
    precision: float | None
    confused_with: str | None  # the most frequent wrong prediction
    confused_fraction: float  # of the class's pixels
    cluster: int | None  # below 0: background


class History(NamedTuple):
    title: str
    first: Chart | None
    others: list[Chart]


def headline(quality: Record, scores: Record, metrics: dict[str, Record]) -> list[Fact]:
    """The first numbers of the page: the scores, or without truth those of `label_free`.

    Args:
        quality: of results/details/quality.json.
        scores: metrics of the final segmentation.
        metrics: by file name, with "linear.json" and "instances.json".
    """
    if "miou" not in scores:
        return label_free.headline(quality)
    instances, probe = dict(scalars(metrics["instances.json"])), metrics["linear.json"].get("miou")
    numbers = [
        ("clustering mIoU", scores["miou"], f"final segmentation, {scores.get('images')} images"),
        ("fit of mined masks", instances.get("masks.mean_iou"), "mean IoU with the object that fits best"),
        ("mask AP50", instances.get("detector.multi.agnostic.AP50"), "detector, all objects, class-agnostic"),
    ]
    facts = [Fact(name, percent(x), meaning) for name, x, meaning in numbers if x is not None]
    return [*facts, Fact("linear probe mIoU", "not measured here" if probe is None else percent(probe), "on frozen features")]


def components(scores: dict[str, Record]) -> dict[str, Any]:
    """The mIoU as each component is added, beside the published one.

    Args:
        scores: metrics by name, of: mined masks, detector, first segmenter, and the final one if it is another.
    """
    table, before = [], None
    for (name, metrics), paper in zip(scores.items(), TABLE_1, strict=False):
        miou = metrics.get("miou")
        table.append(Component(name, metrics, paper, None if miou is None or before is None else miou - before))
        before = miou
    described = next((metrics for metrics in scores.values() if protocol(metrics, "miou")), None)
    return {"rows": table, "described": described, "needs": list(label_free.missing(scores))}


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
    """IoU and confusion of the classes; contents of class_iou.json, confusion.json and scores.json of a clustering.

    Args:
        steps: class_iou.json of each component, by its name.
    """
    if not ious or not cells:
        return {"rows": [], "scores": scores}
    counts = np.array([cell["pixels"] for cell in cells]).reshape(len(ious), -1)  # [C, C + 1], the last: no class
    predicted = [str(cell["prediction"]) for cell in cells[: counts.shape[1]]]
    pixels = counts.sum(1, keepdims=True)
    by_step = [(row["class"], [s[c]["iou"] if c < len(s) else None for s in steps.values()]) for c, row in enumerate(ious)]
    return {
        "rows": class_rows(ious, predicted, counts, scheme),
        "steps": list(steps),
        "by_step": by_step,
        "predicted": predicted,
        "confusion": counts / np.where(pixels > 0, pixels, np.nan),  # fractions of a class's pixels
    }


def class_rows(ious: Sequence[Record], predicted: Sequence[str], counts: np.ndarray, scheme: Scheme) -> list[ClassRow]:
    """The classes' scores from pixel counts [C, C + 1]; predicted: the names of the columns."""
    rows = []
    for c, row in enumerate(ious):
        true, positive, correct = counts[c].sum(), counts[:, c].sum(), counts[c, c]
        wrong = np.where(np.arange(counts.shape[1]) == c, 0, counts[c])
        rows.append(
            ClassRow(
                name=row["class"],
                colour=scheme.classes[c],
                iou=row["iou"],
                recall=correct / true if true else None,
                precision=correct / positive if positive else None,
                confused_with=predicted[int(wrong.argmax())] if wrong.any() else None,
                confused_fraction=wrong.max() / max(1, true),
                cluster=row["cluster"],
            )
        )
    return rows


def curves(trainings: dict[str, dict[str, list[float]]], points: Sequence[Record]) -> list[History]:
    """The numbers of each training over its steps, and the precision of detections over recall where it is known."""
    histories = [history(name, columns) for name, columns in trainings.items()]
    known = [point for point in points if point["precision"] is not None]
    if known:
        recall, precision = ([float(point[key]) for point in known] for key in ("recall", "precision"))
        drawn = charts.curve(recall, precision, "recall", "precision", 1.0)
        histories.append(History("Detections, class-agnostic, at IoU 0.5", drawn, []))
    return histories


def history(name: str, columns: dict[str, list[float]]) -> History:
    """The curves of a training, the loss first."""
    steps = columns.get("step") or list(range(len(next(iter(columns.values()), []))))
    drawn = {key: charts.curve(steps, values, "step", key) for key, values in columns.items() if key != "step" and values}
    return History(name, drawn.pop("loss", None), list(drawn.values()))
