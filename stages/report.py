"""One self-contained HTML page about what each stage made and how good it is, and its contact sheets as pictures.

Clusters get the colours of their classes, as evaluate_clustering has matched them; nothing is learned from it.
"""

import csv
import math
from pathlib import Path

from unseg.clustering import naming
from unseg.core import params, rounds
from unseg.core.console import InputError, run
from unseg.core.image_index import eval_images, read_images, train_images
from unseg.core.instances import Detection, Instance, Lookup, read, read_by_image
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import atomic_write, read_json
from unseg.report import backbones, label_free, page, pictures, sections, sheets
from unseg.report.label_free import Fact
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
    pictures_folder: str,
) -> None:
    p, final, root = params.group("report", page.Report), params.value("final", str), Path(results)
    records, classes = read_images(index), class_names(truth)
    ious = read_json(root / f"details/clustering/{final}/class_iou.json")
    matched = {row["cluster"]: c for c, row in enumerate(ious) if row["cluster"] is not None}
    count = 1 + max((c["id"] for c in read_json(instances)["categories"]), default=-1)
    names = naming.read(clusters, count, naming.fingerprint(instances))
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
        scheme=pictures.apply_names(pictures.scheme(count, classes, matched), names),
    )
    headline, numbers = read_results(root, final, data)
    human = final if final in rounds.human_rounds() else None
    eval_rows, train_rows = sheets.contact_sheets(data, p.pictures)
    failures = sheets.failures(data, read_json(root / f"details/clustering/{final}/image_iou.json"), p.pictures)
    cards = sheets.cluster_cards(data, p.exemplars)
    sheets.write_sheets(Path(pictures_folder), eval_rows, train_rows, cards, data.scheme)
    colours, legend = {"scheme": data.scheme, "classes": classes}, sections.legend(data.scheme, classes)
    shown = [
        *numbers[:2],
        Section("evaluation", "Evaluation images", "contact", {"rows": eval_rows, "legend": legend, **colours}),
        *([Section("training", "Training images", "contact", {"rows": train_rows})] if train_rows else []),
        *([Section("failures", "Failure cases", "contact", {"rows": failures})] if failures else []),
        Section("clusters", "Clusters", "clusters", {"cards": cards, **colours}),
        *numbers[2:],
    ]
    with atomic_write(output) as part:
        part.write_bytes(page.render("report", shown, data=data, headline=headline, human=human))


def read_results(root: Path, final: str, data: sheets.ReportData) -> tuple[list[Fact], list[Section]]:
    """The headline and the sections of numbers, the two most important first; root: the folder results."""
    names, human, details = params.value("rounds", list[str]), rounds.human_rounds(), root / "details"
    first, *later = [name for name in names if name not in human] or [final]
    steps = {"ViT masks": "masks", "+ detector": "detector", f"+ segmentation model ({first})": first}
    last = [final] if final in later else later[-1:] if final in human else []
    steps |= {f"+ CRF round ({name})": name for name in last}
    steps |= {f"+ corrected labels ({final})": final} if final in human and final != first else {}
    scores = {name: read_json(details / f"clustering/{step}/scores.json") for name, step in steps.items()}
    ious = {name: read_json(details / f"clustering/{step}/class_iou.json") for name, step in steps.items()}
    final_scores, final_ious = list(scores.values())[-1], list(ious.values())[-1]
    confusion = read_json(details / f"clustering/{final}/confusion.json")
    linear, instances, quality = (read_json(details / f"{name}.json") for name in ("linear", "instances", "quality"))
    metrics = {f"clustering/{steps[name]}/scores.json": content for name, content in scores.items()}
    metrics |= {"linear.json": linear, "instances.json": instances}
    histories = {"Detector": read_tsv(root / "detector.tsv"), f"Segmenter {final}": read_tsv(root / f"segmenter-{final}.tsv")}
    precision, chosen = read_json(root / "precision_recall.json"), read_json(root / "choose_k.json")
    listed = [params.value(name, list) for name in ("backbones", "sets", "videos")]
    backbone_scores = backbones.read(root / "backbones", *listed)
    table = backbones.table(backbone_scores, [b["name"] for b in listed[0]])

    label_free_data = {"facts": label_free.quality(quality), "missing": label_free.missing(metrics)}
    components = Section("components", "Components", "components", sections.components(scores, human=final in human))
    without_labels = Section("quality", "Quality without labels", "quality", label_free_data)
    return sections.headline(quality, final_scores, linear, instances), [
        *((components, without_labels) if "miou" in final_scores else (without_labels, components)),
        Section("choice", "Choice of K", "choice", label_free.choice(chosen, len(data.scheme.clusters))),
        Section("classes", "Classes", "classes", sections.classes(final_ious, confusion, final_scores, data.scheme, ious)),
        Section("instances", "Instances", "instances", instances),
        Section("linear", "Linear probe", "linear", linear),
        *([Section("backbones", "Backbones", "backbones", table)] if backbone_scores else []),
        Section("curves", "Curves", "curves", sections.curves(histories, precision)),
        Section("numbers", "All numbers", "numbers", metrics | {"quality.json": quality}),
    ]


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
