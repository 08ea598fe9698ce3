"""The model card of a finished run, as a README.md with the hub's metadata. Every number in it is in a file of the run.

It names no path, no photograph and no file of the user's.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML

from unseg.clustering.naming import ClusterNames
from unseg.core import image_index, params, rounds, storage
from unseg.core.console import InputError
from unseg.core.fetched import CROC
from unseg.core.label_maps import IGNORE_LABEL
from unseg.models.weights import RANDOM_INIT
from unseg.report import label_free, overlay, page
from unseg.report.label_free import Fact
from unseg.serving.run import Run

KINDS = {"folder": "A folder of photographs", "voc": "Photographs in PASCAL VOC's layout", "coco": "Photographs in COCO's layout"}
USES = {"backbone.weights": "backbone of the masks", "embedder.weights": "descriptors of the masks", "detector.init": "start of "
        "the detector", "segmenter.init": "start of the segmenter"}  # fmt: skip
METRICS = {"miou": "mean_iou", "pixel_accuracy": "accuracy"}  # as the hub calls them
SCORES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}  # keys of scores.json
PICTURES = {  # files of results/pictures, and titles
    "contact-eval.png": "Evaluation images: what each stage made",
    "contact-train.png": "Training images: what each stage made",
    "clusters.png": "Masks of each cluster",
}
HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "bsd-3-clause-clear", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
                "apple-ascl", "apple-amlr", "gemma", "unknown", "cc0-1.0", "cc-by-sa-4.0", "cc-by-nd-4.0",
                "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "bsd-2-clause")  # fmt: skip
UNKNOWN = "unknown"
PERCENT = " %"
REPRO = "`dvc repro` brings the run up to date"


class Values(dict[str, Any]):
    """The values of params.yaml, by dotted key."""

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{params.FILE}: {key} is missing; profiles/base.yaml has every key")


class Weights(NamedTuple):
    """Weights that the run started from."""

    description: str
    used: str
    source: str
    licence: str | None  # None: it needs none, as it was trained in the run; UNKNOWN: its file has none


@dataclass(frozen=True)
class Scores:
    """The scores of the final segmenter against ground truth."""

    values: dict[str, float]  # by key of SCORES, 0..1
    images: int
    classes: int
    protocol: str


def check_finished(run: Run, final: str) -> None:
    """Raises InputError if the run has no results, or if dvc.lock says that they are not those of this model."""
    predictions = f"data/predictions/{final}.zip"
    read_or_written = {
        f"predict@{final}": (f"models/segmenter-{final}.safetensors", predictions),
        "evaluate_clustering": ("data/predictions", "results/details/clustering"),
        "evaluate_quality": (predictions, "results/quality.json"),
    }
    for path in dict.fromkeys(path for paths in read_or_written.values() for path in paths):
        if not (run / path).exists():
            raise InputError(f"{run / path}: no such file; a model card needs a finished run: {REPRO}")
    yaml = YAML(typ="safe")  # as DVC reads and writes numbers
    lock = (yaml.load(run / "dvc.lock") or {}).get("stages", {}) if (run / "dvc.lock").exists() else {}
    check_params(run, lock, final)
    for stage, paths in read_or_written.items():
        listed = [*lock.get(stage, {}).get("deps", []), *lock.get(stage, {}).get("outs", [])]
        md5 = {x["path"]: x.get("md5") for x in listed}
        for path in paths:
            if md5.get(path) != dvc_md5(run / path):
                raise InputError(f"{run / path} is not what the stage {stage} had in its last run (dvc.lock); {REPRO}")


def check_params(run: Run, lock: Mapping[str, Any], final: str) -> None:
    """Raises InputError if params.yaml has another value than a stage ran with: the card would describe another model."""
    values = YAML(typ="safe").load(run.params)
    made = ("prepare", "mine", "embed", "cluster", "train_detector", "aggregate", f"train_segmenter@{final}")
    for stage in (*made, "evaluate_clustering"):
        for key, ran_with in lock.get(stage, {}).get("params", {}).get(params.FILE, {}).items():
            value = values
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value != ran_with:
                raise InputError(f"{run.params}: {key} is not what the stage {stage} ran with (dvc.lock); {REPRO}")


def dvc_md5(path: Path) -> str:
    """The MD5 of a file, or of a folder as DVC has it: of a list of its files, by name."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted((p.relative_to(path).as_posix(), dvc_md5(p)) for p in path.rglob("*") if p.is_file())
    listed = [{"md5": md5, "relpath": name} for name, md5 in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def read_scores(run: Run, final: str) -> Scores | None:
    """None without ground truth."""
    content = storage.read_json(run / f"results/details/clustering/{final}/scores.json")
    if "needs" in content:
        return None
    return Scores({key: content[key] for key in SCORES}, content["images"], content["classes"], page.protocol(content, "miou"))


def weights_of(run: Run, values: Mapping[str, Any]) -> list[Weights]:
    """The weights that the run started from; random ones are left out. values: of params.yaml, by dotted key."""
    keys = [key for key in USES if key != "segmenter.init" or values["segmenter.arch"] != "vit"]
    files = dict.fromkeys(values[key] for key in keys if values[key] != RANDOM_INIT)
    return [describe(run, file, ", ".join(USES[key] for key in keys if values[key] == file)) for file in files]


def describe(run: Run, file: str, used: str) -> Weights:
    """Name, source and licence as the metadata of the file has them. A file without a name is not named: it is the user's."""
    from unseg.models import vit_files

    try:
        about = vit_files.read_metadata(str(run / file))
    except Exception:  # the file is not there, or no safetensors file
        about = {}
    for part in (about, about.get("init", {})):
        if str(part.get("license", "")).startswith(UNKNOWN):  # as `fetch` writes it
            part["license"] = UNKNOWN
    shape = about.get("backbone", {})
    size = f" (patch {shape['patch']}, width {shape['width']}, {shape['depth']} blocks)" if "patch" in shape else ""
    if file == CROC:
        start = about.get("init", {})
        origin = f", from {start.get('name', 'weights')}" if start else ""
        licence = start.get("license", UNKNOWN) if start else None if about else UNKNOWN
        return Weights(f"a ViT{size}, pre-trained by CrOC in this run{origin}", used, start.get("source", "this run"), licence)
    name = about.get("name") or (Path(file).stem if "source" in about else "a file without a name")
    return Weights(f"{name}{size}", used, about.get("source", UNKNOWN), about.get("license") or UNKNOWN)


def licences(weights: Sequence[Weights], given: str | None) -> list[str]:
    """The licences of the card: those of the weights; `given` for weights whose licence is unknown, or if there are none.

    Raises InputError if `given` would replace a licence that the weights have.
    """
    stated = {w.licence for w in weights if w.licence}
    if given and stated and UNKNOWN not in stated and given not in stated:
        raise InputError(f"--license {given}: the run learned with weights under {', '.join(sorted(stated))}; leave it out")
    return sorted((stated - {UNKNOWN} if given else stated) | ({given} if given else set()))


def licence_fields(names: Sequence[str]) -> dict[str, Any]:
    """The hub's metadata: `license` as one of its identifiers or several; `other` with a name for what it does not know."""
    foreign = [name for name in names if name not in HUB_LICENCES]
    if foreign:
        return {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", "-and-".join(names).lower())}
    return {"license": names[0] if len(names) == 1 else list(names)} if names else {}


def escape(text: object) -> str:
    """Text in one line, without meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(str(text).split()))


def linked(text: str) -> str:
    """As `escape`, but a URL stays a link."""
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>|\\]+", text) else escape(text)


def render(
    run: Run,
    name: str,
    clusters: ClusterNames,
    licence: Sequence[str],
    weights: Sequence[Weights],
    detector: bool,
    pictures: Mapping[str, str],
) -> bytes:
    """The card of a run that `check_finished` accepts.

    Args:
        name: owner/name.
        licence: of the card, from `licences`.
        pictures: path in the repository and title.
    """
    values = read_values(run)
    scores, title = read_scores(run, values["final"]), name.partition("/")[2]
    human = values["final"] in rounds.human_rounds(run.params)
    head = metadata(title, KINDS[values["data.kind"]], scores, licence, human)
    body = page.TEMPLATES.overlay(autoescape=False).get_template("model_card.md.j2").render(
        name=name,
        title=title,
        human=human,
        clusters=cluster_rows(clusters),
        named=any(entry.name for entry in clusters.entries.values()),
        kind=KINDS[values["data.kind"]],
        steps=[(step, escape(setting)) for step, setting in steps(values)],
        weights=[Weights(*(linked(x or "no licence of others") for x in w)) for w in weights],
        detector=detector,
        scores=scores,
        score_rows=[(SCORES[key], page.percent(x, PERCENT)) for key, x in scores.values.items()] if scores else [],
        quality=quality_rows(run),
        pictures=pictures,
        **counts(run, clusters),
    )  # fmt: skip
    return f"---\n{head.to_yaml()}\n---\n{body}".encode()


def metadata(title: str, data: str, scores: Scores | None, licence: Sequence[str], human: bool) -> Any:
    """The hub's metadata, as ModelCardData; data: what the scores were measured on; human: trained on corrected labels."""
    from huggingface_hub import EvalResult, ModelCardData

    task: dict[str, Any] = {"task_type": "image-segmentation", "dataset_type": "custom", "dataset_name": data}
    results = [
        EvalResult(**task, metric_type=METRICS[key], metric_name=f"clustering {SCORES[key]} (Hungarian)", metric_value=x)
        for key, x in (scores.values.items() if scores else ())
    ]
    index: dict[str, Any] = {"model_name": title, "eval_results": results} if results else {}
    return ModelCardData(
        **licence_fields(licence),
        library_name="unseg",
        pipeline_tag="image-segmentation",
        tags=["unseg", "semantic-segmentation", *([] if human else ["unsupervised"]), "self-supervised", "maskdistill"],
        **index,
    )


def read_values(run: Run) -> Values:
    return Values(params.flatten(params.read(run.params)))


def counts(run: Run, clusters: ClusterNames) -> dict[str, int]:
    """Numbers of photographs, and of clusters before and after `clusters.yaml`."""
    index, lut = run / "data/images.json", clusters.label_lut()[1 : clusters.count + 1]
    train, evaluation = image_index.train_images(index), image_index.eval_images(index)
    ignored = int((lut == IGNORE_LABEL).sum())
    merged = int((lut != np.arange(1, clusters.count + 1)).sum()) - ignored
    both = len(set(train) & set(evaluation))
    return {"train": len(train), "evaluation": len(evaluation), "both": both, "k": clusters.count, "merged": merged,
            "ignored": ignored}  # fmt: skip


def cluster_rows(clusters: ClusterNames) -> list[tuple[int, str, str]]:
    """Label, name and colour of each cluster that is neither merged nor ignored."""
    colours = overlay.colour_table(clusters).tolist()
    shown = {label: text for label, text in clusters.names().items() if label}
    return [(label, escape(text), "#{:02x}{:02x}{:02x}".format(*colours[label])) for label, text in shown.items()]


def quality_rows(run: Run) -> list[Fact]:
    numbers = storage.read_json(run / "results/quality.json")
    known = [row for row in label_free.QUALITY if numbers.get(row[0]) is not None]
    return [Fact(text, page.percent(numbers[key], PERCENT), meaning) for key, text, meaning in known]


def steps(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The steps of the run and their main settings, in the order of dvc.yaml."""
    arch = values["segmenter.arch"]
    segmenter = "ViT student" if arch == "vit" else f"DeepLab-v3, {arch}"
    return [
        ("masks", f"method {values['mine.method']}"),
        ("clusters", f"K = {values['cluster.k']}, algorithm {values['cluster.algorithm']}"),
        ("detector", f"Mask R-CNN, {values['detector.arch']}, {values['detector.iterations']} iterations"),
        ("segmenter", f"{segmenter}, {values['segmenter.epochs']} epochs, {len(values['rounds'])} rounds"),
        ("seed", str(values["seed"])),
    ]
