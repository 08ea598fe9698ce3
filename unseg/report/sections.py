"""The sections of the report: pure functions from what the stages made, and how it was scored, to HTML.

metrics: content of a scores.json, linear.json or instances.json of results/details; one that says {"needs": ...} has no numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unseg.report import charts, unlabelled
from unseg.report.page import (
    DASH,
    PERCENT,
    Html,
    fold,
    html,
    join,
    named,
    note,
    percent,
    picture,
    scroll,
    sentence,
    swatch,
    table,
)
from unseg.report.pictures import Scheme
from unseg.report.sheets import Record, ReportData, Row, SheetCard
from unseg.report.unlabelled import Fact

UNMEASURED = "not measured here"
TABLE_1 = (39.0, 42.0, 45.8, 48.9)  # clustering mIoU on VOC2012 val: ViT masks, + detector, + segmentation model, + CRF
LINEAR, LINEAR_CRF = 58.7, 62.8  # linear probe's mIoU on VOC2012 val, without and with CRF
TABLE_3 = (
    "The paper does not say which class setting its Table 3 has. Mask AP50 / AP / AP75 there, VOC2012: multi-object "
    "12.8 / 4.8 / 0.3 (mined masks) and 24.3 / 9.9 / 6.9 (detector); single-object 24.0 / 9.5 / 6.4 and 32.8 / 14.7 / 11.8."
)


def about(made: ReportData) -> Html:
    """What went in and what came out, in a sentence."""
    both = len(made.learned) + len(made.judged) - len(made.images)
    split = (
        "all learned from and judged"
        if both == len(made.images)
        else f"{len(made.learned):,} learned from, {len(made.judged):,} judged"
    )
    went_in = f"{len(made.images):,} photographs ({split}, {made.rejected:,} rejected)"
    k, masks = len(made.scheme.clusters), sum(map(len, made.mined.values()))
    truth = "" if made.classes else " There is no ground truth: numbers that need it are left out."
    words = f"{went_in}, {masks:,} mined masks in {k} clusters, without a label.{truth}"
    return Html(f'<p class="lead">{html(words)}</p>')


def telling(quality: Record, scores: Record, metrics: dict[str, Record]) -> list[Fact]:
    """The page's first numbers: the scores, or what can be said without truth.

    Args:
        quality: of results/details/quality.json.
        scores: metrics of the final segmentation.
        metrics: by file name; "linear.json" and "instances.json" are looked at.
    """
    found = dict(scalars(metrics["instances.json"]))
    if "miou" not in scores:
        return unlabelled.telling(quality)
    facts = [Fact("clustering mIoU", measured(scores, "miou"), f"final segmentation, {scores.get('images')} images")]
    if "masks.mean_iou" in found:
        facts += [Fact("fit of mined masks", percent(found["masks.mean_iou"]), "mean IoU with the object that fits best")]
    if "detector.multi.agnostic.AP50" in found:
        facts += [Fact("mask AP50", percent(found["detector.multi.agnostic.AP50"]), "detector, all objects, class-agnostic")]
    return [*facts, Fact("linear probe mIoU", measured(metrics["linear.json"], "miou"), "on frozen features")]


def headline(facts: Sequence[Fact]) -> Html:
    """The page's first numbers, large."""
    boxes = (
        Html(f"<div><dt>{html(f.name)}</dt><dd><b>{html(f.value)}</b><span>{html(f.meaning)}</span></dd></div>") for f in facts
    )
    return Html(f'<dl class="headline">{join(boxes)}</dl>')


def measured(metrics: Record, key: str) -> str:
    return percent(metrics[key]) if isinstance(metrics.get(key), int | float) else UNMEASURED


def needs(metrics: Record) -> Html:
    """The line that stands where a number would, if the truth it needs were there."""
    return Html(f'<p class="needs">{UNMEASURED}: needs {html(metrics["needs"])}</p>') if "needs" in metrics else Html()


def components(rows: Sequence[tuple[str, Record]]) -> Html:
    """The paper's Table 1: the mIoU as each component is added, beside the published one.

    Args:
        rows: name and metrics of: mined masks, detector, first segmenter, and the final one where that is another.
    """
    lines, before = [], None
    for (name, metrics), paper in zip(rows, TABLE_1, strict=False):
        miou = metrics.get("miou")
        gain = f"{100 * (miou - before):+.1f}" if miou is not None and before is not None else DASH
        drawn = Html(charts.bar(miou)) if miou is not None else ""
        lines.append((name, measured(metrics, "miou"), paper, gain, drawn, measured(metrics, "pixel_accuracy")))
        before = miou
    head = ("component", "clustering mIoU", "paper, VOC", "gain", "", "pixel accuracy")
    about = next((m for _, m in rows if protocol(m, "miou")), {})
    words = note(f"{sampled(about)} {sentence(protocol(about, 'miou'))}") if about else ""
    more = fold("The same by every protocol", every_protocol(rows)) if about else ""
    return join([table("clustering mIoU by component", head, lines), words, more, *dict.fromkeys(needs(m) for _, m in rows)])


def every_protocol(rows: Sequence[tuple[str, Record]]) -> Html:
    """Each number of each component, with what it means."""
    known = next(m["protocols"] for _, m in rows if "protocols" in m)
    lines = [(p["number"], *(percent(m.get(p["number"])) for _, m in rows), sentence(p["protocol"])) for p in known]
    return table("every protocol", ("number", *(name for name, _ in rows), "protocol"), lines)


def protocol(metrics: Record, number: str) -> str:
    """How a number of a metrics file was measured; empty where it does not say."""
    return next((p["protocol"] for p in metrics.get("protocols", []) if p["number"] == number), "")


def sampled(metrics: Record) -> str:
    """On how many images and in which runs a metrics file was measured."""
    seeds = metrics.get("seeds", [])
    runs = f", one run (seed {seeds[0]})" if len(seeds) == 1 else f", seeds {', '.join(map(str, seeds))}" if seeds else ""
    return f"Measured on {metrics['images']} images{runs}."


def legend(scheme: Scheme, classes: Sequence[str]) -> Html:
    """Which colour is which class or cluster, and what stripes mean."""
    entries = []
    if classes:
        for c, name in enumerate(classes[1:], 1):
            ids = [k for k, own in enumerate(scheme.names) if own == name]
            which = called(scheme, ids[0]) if ids else "no cluster"
            own = [swatch(scheme.clusters[k]) for k in ids[:1] if (scheme.clusters[k] != scheme.classes[c]).any()]
            entries.append(join([swatch(scheme.classes[c]), named(name), " = ", *own, which]))
    alone = [k for k, name in enumerate(scheme.names) if name is None and not scheme.fate(k)]
    entries += [join([swatch(scheme.clusters[k], bool(classes)), called(scheme, k)]) for k in alone]
    entries += [Html('<span class="swatch dim"></span>background'), Html('<span class="swatch void"></span>void, ignored')]
    words = "Classes are known to this page only, to colour clusters alike; striped: stands for no class." if classes else ""
    body = join([Html(f'<ul class="legend">{join(Html(f"<li>{e}</li>") for e in entries)}</ul>'), note(words) if words else ""])
    return fold("Colours", body, opened=len(entries) <= 40)


def called(scheme: Scheme, cluster: int) -> str:
    """Its number, and what people call it and make of it."""
    said = scheme.said[cluster] if scheme.said else None
    return f"cluster {cluster}" + (f", {said}" if said else "") + (f" ({fate})" if (fate := scheme.fate(cluster)) else "")


def contact(rows: Sequence[Row]) -> Html:
    """A row for each image: its name, and a picture for each step that the image went through."""
    parts = []
    for name, tiles in rows:
        figures = []
        for t in tiles:
            shown = (
                picture(t.pixels, f"{name}: {t.head}. {t.note}") if t.pixels is not None else Html('<div class="none">none</div>')
            )
            words = Html(f"<figcaption><b>{html(t.head)}</b> {html(t.note)}</figcaption>")
            figures.append(Html(f"<figure>{shown}{words}</figure>"))
        strip = Html(f'<div class="strip" style="--n:{len(tiles)}">{join(figures)}</div>')
        parts.append(Html(f"<article><h4>{named(name)}</h4>{strip}</article>"))
    return join(parts) if parts else note("No image to show.")


def clusters(cards: Sequence[SheetCard], scheme: Scheme, classes: Sequence[str]) -> Html:
    parts = []
    for card in cards:
        striped = bool(classes) and card.name is None
        class_ = named(card.name) if card.name is not None else "stands for no class" if classes else ""
        words = join([f"{card.size:,} masks, {100 * card.share:.1f} %", Html("<br>") if class_ else "", class_])
        crops = join(picture(pixels, f"mask of cluster {card.id} in {name}") for pixels, name in card.crops)
        head = join([swatch(scheme.clusters[card.id], striped), f"C{called(scheme, card.id)[1:]}"])
        parts.append(Html(f'<article class="card"><h4>{head}</h4><p>{words}</p><div class="crops">{crops}</div></article>'))
    grid = Html(f'<div class="cards">{join(parts)}</div>')
    return grid if len(cards) <= 40 else fold(f"{len(cards)} clusters", grid)


def classes(
    ious: Sequence[Record], cells: Sequence[Record], scores: Record, scheme: Scheme, steps: dict[str, Sequence[Record]]
) -> Html:
    """IoU and confusion of the classes; contents of class_iou.json, confusion.json and scores.json of a clustering.

    Args:
        steps: class_iou.json of each component, by its name.
    """
    if not ious or not cells:
        return needs(scores)
    counts = np.array([cell["pixels"] for cell in cells]).reshape(len(ious), -1)  # [C, C + 1]
    predicted = [str(cell["prediction"]) for cell in cells[: counts.shape[1]]]
    drawn = confusion(predicted, counts)
    lines = [
        (named(str(row["class"])), *(percent(found[c]["iou"]) if c < len(found) else DASH for found in steps.values()))
        for c, row in enumerate(ious)
    ]
    by_step = fold("IoU of each class after each component", table("IoU by component", ("class", *steps), lines), opened=True)
    return join([class_bars(ious, predicted, counts, scheme), by_step, fold("Confusion of classes", drawn, opened=True)])


def class_bars(rows: Sequence[Record], names: Sequence[str], counts: np.ndarray, scheme: Scheme) -> Html:
    """IoU of each class, as bars, the cluster that stands for it, and what it is mostly taken for instead.

    Args:
        names: of the columns of counts [C, C + 1], pixels.
    """
    lines = []
    for c, row in enumerate(rows):
        iou, cluster = row.get("iou"), row.get("cluster")
        drawn = Html(charts.bar(iou, scheme.classes[c])) if iou is not None and c < len(scheme.classes) else "absent"
        which = "none" if cluster is None else "background" if cluster < 0 else cluster
        there, given, right = counts[c].sum(), counts[:, c].sum(), counts[c, c]
        wrong = np.where(np.arange(counts.shape[1]) == c, 0, counts[c])
        taken = f"{names[int(wrong.argmax())]} {100 * wrong.max() / there:.0f}{PERCENT}" if wrong.any() else DASH
        shares = (percent(right / there if there else None), percent(right / given if given else None))
        lines.append((named(str(row["class"])), drawn, percent(iou), *shares, named(taken), which))
    head = ("class", "IoU", "%", "recall", "precision", "mostly taken for", "cluster")
    return table("IoU of each class", head, lines)


def confusion(names: Sequence[str], counts: np.ndarray) -> Html:
    """[C, C + 1] pixels as a picture of shares of each row; the last column holds clusters that stand for no class."""
    shares = counts / np.where(counts.sum(1, keepdims=True) > 0, counts.sum(1, keepdims=True), np.nan)
    drawn = Html(charts.heat(shares, names[: len(counts)], names))
    return join(
        [
            note("Rows: true class; columns: class of the predicted cluster; per cent of the row's pixels."),
            scroll(drawn, "confusion"),
        ]
    )


def instances(metrics: Record) -> Html:
    """Mask AP of mined masks and detections, by mode and class setting; results/details/instances.json."""
    if "needs" in metrics:
        return needs(metrics)
    rows = []
    for mode in ("multi", "single"):
        for setting in ("agnostic", "aware"):
            found = [metrics.get(what, {}).get(mode, {}).get(setting, {}) for what in ("masks", "detector")]
            cells = [percent(scores.get(name)) for scores in found for name in ("AP50", "AP", "AP75")]
            rows.append((f"{mode}-object, class-{setting}", *cells))
    sources = [f"{what} {name}" for what in ("mined", "detector") for name in ("AP50", "AP", "AP75")]
    fit = metrics.get("masks", {})
    words = f"Mined masks against the object they fit best: mean IoU {percent(fit.get('mean_iou'))}, box IoU at least 0.5 in \
{percent(fit.get('corloc'))} % of the images that have objects (CorLoc). {sampled(metrics)}"
    how = [(p["number"], sentence(p["protocol"])) for p in metrics.get("protocols", [])]
    meanings = fold("What the protocols are", table("protocols", ("number", "protocol"), how)) if how else ""
    return join([table("mask AP", ("protocol", *sources), rows), note(words), meanings, note(TABLE_3)])


def linear(metrics: Record) -> Html:
    rows: list[tuple[str, str, object]] = [
        ("mIoU", measured(metrics, "miou"), LINEAR),
        ("mIoU after CRF", measured(metrics, "miou_crf"), LINEAR_CRF),
        ("pixel accuracy", measured(metrics, "pixel_accuracy"), DASH),
    ]
    how = note(f"{sampled(metrics)} {sentence(protocol(metrics, 'miou'))}") if protocol(metrics, "miou") else ""
    return join([table("linear probe", ("quantity", "measured", "paper, VOC2012"), rows), how, needs(metrics)])


def curves(trainings: dict[str, dict[str, list[float]]], detections: Sequence[Record]) -> Html:
    """Each training's numbers over its steps, and the precision of detections over recall where it is known."""
    drawn = [history(name, columns) for name, columns in trainings.items()]
    known = [point for point in detections if point["precision"] is not None]
    if known:
        xs, ys = ([float(point[key]) for point in known] for key in ("recall", "precision"))
        title = Html("<h3>Detections, class-agnostic, at IoU 0.5</h3>")
        drawn.append(Html(f"<article>{title}{curve(xs, ys, 'recall', 'precision', 1.0)}</article>"))
    return Html(f'<div class="curves">{join(drawn)}</div>')


def history(name: str, columns: dict[str, list[float]]) -> Html:
    """Curves of a training: the loss, and folded away whatever else was noted at each step."""
    steps = columns.get("step") or list(range(len(next(iter(columns.values()), []))))
    drawn = {key: curve(steps, values, "step", key) for key, values in columns.items() if key != "step" and values}
    rest = [figure for key, figure in drawn.items() if key != "loss"]
    more = fold(f"{len(rest)} more of {name}", Html(f'<div class="curves">{join(rest)}</div>')) if rest else ""
    return Html(f"<article><h3>{html(name)}</h3>{join([drawn.get('loss', ''), more])}</article>")


def curve(xs: Sequence[float], ys: Sequence[float], x: str, y: str, top: float | None = None) -> Html:
    drawn = Html(charts.curve(xs, ys, x, y, top))
    return Html(f"<figure><figcaption>{html(y)} <span>{ys[0]:.3g} → {ys[-1]:.3g}</span></figcaption>{drawn}</figure>")


def everything(files: dict[str, Record]) -> Html:
    """Each scalar of each metrics file, folded away by file."""
    return join(
        fold(Html(f"<code>{html(name)}</code>"), table(name, ("key", "value"), [(key, plain(x)) for key, x in scalars(content)]))
        for name, content in files.items()
    )


def plain(x: Any) -> str:
    return DASH if x is None else f"{x:.6g}" if isinstance(x, float) else str(x)


def scalars(tree: Record, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values; a list is told by its length."""
    for key, x in tree.items():
        if isinstance(x, dict):
            yield from scalars(x, f"{prefix}{key}.")
        else:
            yield prefix + key, f"list of {len(x)}" if isinstance(x, list) else x
