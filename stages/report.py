"""One self-contained HTML page about what each stage made and how good it is, and its contact sheets as pictures.

Clusters get the colours of their classes, as evaluate_clustering has matched them; nothing is learned from it.
"""

import csv
import math
from pathlib import Path

from unseg.clustering import naming
from unseg.core import params
from unseg.core.console import InputError, run
from unseg.core.image_index import eval_images, read_images, train_images
from unseg.core.instances import Detection, Instance, Lookup, read, read_by_image
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import atomic_write, read_json
from unseg.report import backbones, label_free, page, pictures, sections, sheets
from unseg.report.page import Section


def main(
    index: str,
    images: str,
    truth: str,
    masks: str,
    instances: str,
    detections: str,
    labels: str,
    predictions: str,
    clusters: str,
    results: str,
    output: str,
    sheets_folder: str,
) -> None:
    p, final = params.group("report", page.Report), params.value("final", str)
    first, root = params.value("rounds", list[str])[0], Path(results)
    details, clustering = root / "details", root / "details/clustering" / final
    components = {  # name: folder below results/details/clustering
        "ViT masks": "masks",
        "+ detector": "detector",
        f"+ segmentation model ({first})": first,
        f"+ CRF round ({final})": final,
    }
    if first == final:
        del components[f"+ CRF round ({final})"]
    files = [*(f"clustering/{step}/scores.json" for step in components.values()), "linear.json", "instances.json"]
    metrics = {name: read_json(details / name) for name in files}
    by_component = {name: metrics[f"clustering/{step}/scores.json"] for name, step in components.items()}
    class_ious = {name: read_json(details / f"clustering/{step}/class_iou.json") for name, step in components.items()}
    scores, ious = metrics[f"clustering/{final}/scores.json"], read_json(clustering / "class_iou.json")
    image_ious, confusion = read_json(clustering / "image_iou.json"), read_json(clustering / "confusion.json")
    trainings = {"Detector": "detector.tsv", f"Segmenter {final}": f"segmenter-{final}.tsv"}
    histories = {name: read_tsv(root / file) for name, file in trainings.items()}
    precision, chosen = read_json(root / "precision_recall.json"), read_json(root / "choose_k.json")
    quality = read_json(details / "quality.json")
    listed = [params.value(name, list) for name in ("backbones", "sets", "videos")]
    backbone_scores = backbones.read(root / "backbones", *listed)

    records, classes = read_images(index), class_names(truth)
    matched = {row["cluster"]: c for c, row in enumerate(ious) if row["cluster"] is not None}
    count = 1 + max((c["id"] for c in read_json(instances)["categories"]), default=-1)
    names = naming.read(clusters, count, naming.fingerprint(instances))
    scheme = pictures.apply_names(pictures.scheme(count, classes, matched), names)
    data = sheets.ReportData(
        root=images,
        images=records,
        eval_images=eval_images(index),
        train_images=train_images(index),
        rejected=len(read_json(Path(index).with_name("rejected.json"))["rejected"]),
        mined=dict(read_by_image(masks, Instance, records)),
        cluster={x.id: x.category_id for x in read(instances, Instance, records, clusters=count)},
        detections=Lookup(detections, Detection),
        labels=LabelMaps(labels),
        predictions=LabelMaps(predictions),
        truth=LabelMaps(truth, "semantic/"),
        classes=classes,
        scheme=scheme,
    )
    eval_rows, train_rows = sheets.contact_sheets(data, p.pictures)
    failures = sheets.failures(data, image_ious, p.pictures)
    cards = sheets.cluster_cards(data, p.exemplars)
    sheets.write_sheets(Path(sheets_folder), eval_rows, train_rows, cards, scheme)

    colours = {"scheme": scheme, "classes": classes}
    legend = {"legend": sections.legend(scheme, classes), **colours}
    without_labels = {"facts": label_free.quality(quality), "missing": label_free.missing(metrics)}
    first_sections = [
        Section("components", "Components", "components", sections.components(by_component)),
        Section("quality", "Quality without labels", "quality", without_labels),
    ]
    parts = [
        *(first_sections if "miou" in scores else reversed(first_sections)),
        Section("evaluation", "Evaluation images", "contact", {"rows": eval_rows, **legend}),
        *([Section("training", "Training images", "contact", {"rows": train_rows})] if train_rows else []),
        *([Section("failures", "Failure cases", "contact", {"rows": failures})] if failures else []),
        Section("clusters", "Clusters", "clusters", {"cards": cards, **colours}),
        Section("choice", "Choice of K", "choice", label_free.choice(chosen, count)),
        Section("classes", "Classes", "classes", sections.classes(ious, confusion, scores, scheme, class_ious)),
        Section("instances", "Instances", "instances", metrics["instances.json"]),
        Section("linear", "Linear probe", "linear", metrics["linear.json"]),
        Section("curves", "Curves", "curves", sections.curves(histories, precision)),
        Section("numbers", "All numbers", "numbers", metrics | {"quality.json": quality}),
    ]
    if backbone_scores:
        table = backbones.table(backbone_scores, [b["name"] for b in listed[0]])
        parts.insert(-2, Section("backbones", "Backbones", "backbones", table))
    headline = sections.headline(quality, scores, metrics)
    with atomic_write(output) as part:
        part.write_bytes(page.render("report", parts, data=data, headline=headline))


def read_tsv(path: Path) -> dict[str, list[float]]:
    """Columns by name; those with a value that is not finite are left out."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        columns = {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else {})}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a table of numbers ({error}); make it again") from None
    return {key: values for key, values in columns.items() if all(map(math.isfinite, values))}


if __name__ == "__main__":
    run(main)
