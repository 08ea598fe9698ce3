"""One self-contained HTML page of what each stage made and how good it is, and its contact sheets as pictures.

Clusters get their classes' colours here, from what evaluate_clustering matched; nothing is learned from it.
"""

import csv
import math
from pathlib import Path

from unseg.clustering import naming
from unseg.core import params, streams
from unseg.core.console import InputError, run
from unseg.core.image_index import eval_images, read_images, train_images
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.rle import group_by_image
from unseg.core.storage import atomic_write, read_json
from unseg.report import backbones, page, pictures, sections, sheets, unlabelled
from unseg.report.page import Section


def main(
    images: str,
    root: str,
    truth: str,
    masks: str,
    instances: str,
    detections: str,
    labels: str,
    predictions: str,
    said: str,
    results: str,
    output: str,
    folder: str,
) -> None:
    report, final = params.group("report", page.Report), params.value("final", str)
    first, found, clustered = params.value("rounds", list[str])[0], Path(results), read_json(instances)
    details = found / "details"
    steps = [f"clustering/{step}/scores.json" for step in dict.fromkeys(("masks", "detector", first, final))]
    rows = ("ViT masks", "+ detector", f"+ segmentation model ({first})", f"+ CRF round ({final})")
    metrics = {name: read_json(details / name) for name in (*steps, "linear.json", "instances.json")}
    scores = metrics[steps[-1]]
    single, confusion, ious = (
        read_json(details / f"clustering/{final}/{name}.json") for name in ("image_iou", "confusion", "class_iou")
    )
    by_step = {name: read_json(details / step.replace("scores", "class_iou")) for name, step in zip(rows, steps, strict=False)}
    trainings = {"Detector": read_tsv(found / "detector.tsv")}
    trainings[f"Segmenter {final}"] = read_tsv(found / f"segmenter-{final}.tsv")
    precision, chosen = (read_json(found / f"{name}.json") for name in ("precision_recall", "choose_k"))
    numbers = read_json(details / "quality.json")
    listed = [params.value(name, list) for name in ("backbones", "sets", "videos")]
    compared = backbones.read(found / "backbones", *listed)

    classes, matched = class_names(truth), {row["cluster"]: c for c, row in enumerate(ious) if row["cluster"] is not None}
    count = 1 + max((c["id"] for c in clustered["categories"]), default=-1)
    names = naming.read(said, count, naming.fingerprint(instances))
    scheme = pictures.renamed(pictures.scheme(count, classes, matched), names)
    made = sheets.ReportData(
        root=root,
        images=read_images(images),
        judged=eval_images(images),
        learned=train_images(images),
        rejected=len(read_json(Path(images).with_name("rejected.json"))["rejected"]),
        mined=group_by_image(read_json(masks)["annotations"]),
        cluster={a["id"]: a["category_id"] for a in clustered["annotations"]},
        detections=streams.Lookup(detections),
        labels=LabelMaps(labels),
        predictions=LabelMaps(predictions),
        truth=LabelMaps(truth, "semantic/"),
        classes=classes,
        scheme=scheme,
    )
    judged, learned = sheets.contacts(made, report.pictures)
    failures = sheets.failures(made, single, report.pictures)
    cards = sheets.cluster_cards(made, report.exemplars)
    sheets.write_sheets(Path(folder), judged, learned, cards)

    body = page.join([unlabelled.facts(unlabelled.quality(numbers)), unlabelled.missing(metrics)])
    without = Section("quality", "Quality without labels", body)
    table = sections.components([(name, metrics[step]) for name, step in zip(rows, steps, strict=False)])
    scored = Section("components", "Components", table)
    parts = [
        *((scored, without) if "miou" in scores else (without, scored)),
        Section("judged", "Judged images", page.join([sections.legend(scheme, classes), sections.contact(judged)])),
        *([Section("learned", "Training images", sections.contact(learned))] if learned else []),
        *([Section("failures", "Failure cases", sections.contact(failures))] if failures else []),
        Section("clusters", "Clusters", sections.clusters(cards, scheme, classes)),
        Section("choice", "Choice of K", unlabelled.choice(chosen, len(scheme.clusters))),
        Section("classes", "Classes", sections.classes(ious, confusion, scores, scheme, by_step)),
        Section("instances", "Instances", sections.instances(metrics["instances.json"])),
        Section("linear", "Linear probe", sections.linear(metrics["linear.json"])),
        *([Section("backbones", "Backbones", backbones.section(compared, [b["name"] for b in listed[0]]))] if compared else []),
        Section("curves", "Curves", sections.curves(trainings, precision)),
        Section("numbers", "All numbers", sections.everything(metrics | {"quality.json": numbers})),
    ]
    lead = page.join([sections.about(made), sections.headline(sections.telling(numbers, scores, metrics))])
    with atomic_write(output) as part:
        part.write_bytes(page.document("unseg report", lead, parts))


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
