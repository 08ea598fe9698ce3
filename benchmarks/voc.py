"""Every choice of mining, embedding, clustering and segmenter on VOC photographs with one ViT, scored with the true labels.

    python benchmarks/voc.py [--into FOLDER] [--weights FILE] [--steps mine embed cluster masks detector student ...]
        [--quick] [--photos 80] [--set key=value ...]

--weights is by default ../shared/data/standin/vits14.safetensors, a ViT that was fine-tuned WITH HUMAN LABELS: it shows the
machinery at work, and what it gives is no result without labels. --data is a VOC2012 folder, by default ../shared/data/VOC2012.

The stages run in this process, in a copy of this working tree, with their command lines of dvc.yaml and params.yaml of
profiles/voc_small.yaml with the values CHAIN (what we recommend, with this ViT's layer), --set, and those that name a row; the
rows of mine, embed and cluster vary MINE_BASE and CLUSTER_BASE instead. Steps:
mine      each mining choice on --photos evaluation images: foreground IoU, and what quality.json has about masks
embed     each descriptor of the true regions of all images
cluster   each clustering of each of those descriptors: purity, AMI, what quality.json has about clusters; each K of choose_k
masks     the chain: masks of all images by CHAIN, their descriptors and clusters; clustering mIoU of masks
detector  Mask R-CNN on them        deeplab  DeepLab-v3 on the label maps of masks
student   ViT students on the label maps of masks        rounds  self-training and CRF rounds
mIoU: evaluation images, Hungarian on IoU. Seconds an image include what a network would cost alone: facets and tokens that
several choices share are computed once. Detector and DeepLab are small (see CHAIN), because a CPU trains them.

FOLDER keeps each finished row in rows.jsonl: the same command goes on where it was interrupted, and other steps add to it. The
table is printed at the end and kept in table.txt. Rank correlations: Spearman's rho over the rows of a step, of each number
without labels with the score. --quick: 60 train and 60 evaluation images, 12 for mining.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import truth_scores
from benchmarks.voc_project import FACETS, VOC, Changes, Project, shared_networks
from unseg.core import image_index, instances, params, storage
from unseg.core.console import InputError, keep_freed_memory
from unseg.core.instances import Instance

SHARED = ROOT / "../shared/data"
STAND_IN = SHARED / "standin/vits14.safetensors"
CHAIN: Changes = {
    "mine.resize": 336,
    "mine.facet": "tokens",
    "mine.rank": "softmax",
    "mine.keep": 0.4,
    "mine.flip": True,
    "mine.threshold": "otsu",
    "embed.region": "box",
    "embed.descriptor": "mean",
    "embed.layer": 8,
    "embed.resize": 224,
    "embed.longest": 448,
    "cluster.k": 20,
    "cluster.algorithm": "spectral",
    "cluster.whiten": "none",
    "cluster.components": None,
    "detector.short_sides": [256],
    "detector.long_side": 448,
    "detector.iterations": 300,
    "detector.lr_steps": [220, 270],
    "detect.short_side": 256,
    "segmenter.channels": 128,
    "predict.input": "square",
    "quality.images": 16,
    "quality.seeds": 3,
    "choose.ks": [5, 10, 15, 20, 30, 40],
    "choose.repeats": 3,
}
MINE_BASE: Changes = {"mine.resize": 448, "mine.rank": "logits", "mine.flip": False, "mine.threshold": 0.0}
CLUSTER_BASE: Changes = {"embed.region": "masked", "cluster.algorithm": "full", "cluster.whiten": "pca", "cluster.components": 64}
DEEPLAB: Changes = {"segmenter.arch": "resnet18", "segmenter.width": 32, "segmenter.size": 224, "segmenter.lr": 0.02}
DEEPLAB |= {"segmenter.epochs": 10, "segmenter.lr_milestone": 7}
STUDENT: Changes = {"segmenter.arch": "vit", "segmenter.lr": 0.02, "segmenter.size": 336, "segmenter.hard_pixel_ratio": 0.5}
STUDENT |= {"segmenter.epochs": 30, "segmenter.lr_milestone": 24}
SCALES = [0.75, 1.0]
HEAD: Changes = {"mine.method": "head", "mine.head": "models/foreground.safetensors", "foreground.heads": ["foreground"]}
HEAD |= {"foreground.center": True, "foreground.threshold": "otsu"}
MINE: list[Changes] = [
    *({"mine.facet": facet, "mine.center": center} for facet in FACETS for center in (False, True)),
    *(
        {"mine.facet": facet, "mine.normalize": True, "mine.threshold": threshold}
        for facet in ("keys", "tokens")
        for threshold in (0.0, 0.1, 0.2, "otsu")
    ),
    {"mine.rank": "softmax"},
    {"mine.rank": "degree"},
    {"mine.keep": 0.2},
    {"mine.component": False},
    {"mine.flip": True},
    {"mine.flip": True, "mine.rank": "softmax"},
    {"mine.threshold": "otsu"},
    {"mine.flip": True, "mine.rank": "softmax", "mine.threshold": "otsu"},
    {"mine.scales": SCALES},
    {"mine.objects": 3},
    {"mine.method": "attention"},
    {"mine.method": "lost"},
    *(
        {"mine.method": "tokencut", "mine.facet": facet, "mine.threshold": threshold}
        for facet, threshold in (("keys", 0.2), ("tokens", 0.2), ("tokens", "otsu"))
    ),
    {"mine.method": "regions", "mine.objects": 5},
    HEAD,
    HEAD | {"foreground.corners": True},
    HEAD | {"foreground.facet": "tokens"},
    {"mine.layer": 8},
    {"mine.layer": 8, "mine.facet": "keys"},
    {"mine.layer": 10},
]
EMBED: list[Changes] = [
    {"embed.descriptor": descriptor, "embed.layer": layer}
    for descriptor, layer in (("cls", -1), ("mean", -1), ("cls", 8), ("mean", 8), ("both", 8))
]
CLUSTER: list[Changes] = [
    {"cluster.whiten": "std", "cluster.components": None},
    {"cluster.whiten": "none", "cluster.components": None},
    {"cluster.whiten": "pca", "cluster.components": None},
    {"cluster.algorithm": "full"},
    {"cluster.algorithm": "minibatch"},
    {"cluster.algorithm": "spectral"},
    {"cluster.algorithm": "spectral", "cluster.whiten": "none", "cluster.components": None},
    {"cluster.algorithm": "overcluster"},
    {"cluster.algorithm": "overcluster", "cluster.overclusters": 300},
]
SHORT: Changes = {"segmenter.epochs": 10, "segmenter.lr_milestone": 7}
STUDENTS: dict[str, tuple[str, Changes]] = {  # name: round of label maps, values
    "conv-masks": ("masks", {"segmenter.head": "conv"}),
    "linear-masks": ("masks", {"segmenter.head": "linear"}),
    "paper-loss": ("masks", {"segmenter.head": "conv", "segmenter.hard_pixel_ratio": 0.2}),
    "layer-8": ("masks", {"segmenter.head": "conv", "segmenter.layer": 8}),
    "tuned-masks": ("masks", {"segmenter.head": "conv", "segmenter.tuned_blocks": 1} | SHORT),
}
ROUNDS: dict[str, Changes] = {  # name: how conv-masks labels the train images again
    "flip": {"relabel.crf": False, "relabel.flip": True},
    "ema": {"relabel.crf": False, "relabel.flip": True, "relabel.threshold": 0.5, "segmenter.ema": 0.99},
    "crf": {"relabel.crf": True, "relabel.flip": True},
}
SCORE = {"mine": "foreground", "cluster": "ami", "choose_k": "ami"}  # with labels, by step


TRUTH, IMAGES = Path("data/truth.zip"), f"{VOC}/JPEGImages"


# Steps


def mine(project: Project) -> None:
    sample = image_index.evenly_spaced(project.val, project.photos)
    storage.write_json("choices/few.json", {"images": [vars(i) for i in sample]})
    trained: Changes = {}
    project.base = MINE_BASE
    for changes in MINE:

        def way(changes: Changes = changes) -> dict[str, float]:
            from unseg.evaluation.label_free import quality, stability
            from unseg.mining import affinity
            from unseg.models import vit

            seconds = 0.0
            heads = {k: x for k, x in changes.items() if k.startswith("foreground.")}
            if heads and heads != trained:
                seconds = project.timed(lambda: project.stage("foreground", "foreground", "models/dvc.yaml"), 1)["seconds"]
                trained.clear()
                trained.update(heads)
            numbers = project.timed(
                lambda: project.stage("mine", index="choices/few.json", output="choices/masks.json"), len(sample)
            )
            masks = Path("choices/masks.json")
            numbers |= truth_scores.of_masks(masks, TRUTH, sample, sample)
            mined = instances.read(masks, Instance, sample)
            first = {x.image_id: x.mask for x in reversed(mined)}
            again = image_index.evenly_spaced([i for i in sample if i.id in first], params.value("quality.images", int))
            pairs = [(i, first[i.id].decode()) for i in again]
            model, p = vit.load(params.group("backbone", vit.Backbone)), params.group("mine", affinity.Mining)
            flip, crop = stability.measure_mining(model, IMAGES, pairs, p)
            numbers |= quality.measure_masks(sample, mined) | {"mask_flip": flip, "mask_crop": crop}
            return numbers | ({"training_seconds": seconds} if seconds else {})

        project.row("mine", changes, way)
    project.memo.results.clear()


def tokens_file(changes: Changes) -> Path:
    return Path("choices") / ("tokens-" + "-".join(map(str, changes.values())) + ".npz")


def embed(project: Project) -> None:
    regions = Path("choices/true-regions.json")
    if not regions.exists():
        truth_scores.write_true_regions(TRUTH, project.index, regions)
    objects = instances.read(regions, Instance, project.index)
    project.base = CLUSTER_BASE
    for changes in EMBED:

        def way(changes: Changes = changes) -> dict[str, float]:
            output = str(tokens_file(changes))
            numbers = project.timed(lambda: project.stage("embed", masks=str(regions), output=output), len(objects))
            return numbers | one_nearest(np.load(output)["tokens"], truth_scores.classes_of(objects, TRUTH, project.index))

        project.row("embed", changes, way)


def one_nearest(tokens: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Leave-one-out accuracy of the nearest neighbour by cosine: how well tokens [M, D] tell classes [M] apart."""
    x = tokens / np.linalg.norm(tokens, axis=1, keepdims=True).clip(1e-12)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    return {"nearest": float((classes[similarity.argmax(1)] == classes).mean())}


def cluster_numbers(project: Project, tokens: str, masks: str, output: str) -> dict[str, float]:
    """Cluster, and compare the clusters of the train images with the classes under their masks."""
    from unseg.clustering import algorithms
    from unseg.evaluation.label_free import quality

    numbers = project.timed(lambda: project.stage("cluster", tokens=tokens, masks=masks, output=output), 1)
    p, q = params.group("cluster", algorithms.Clustering), params.group("quality", quality.Quality)
    train = instances.read(output, Instance, project.index, project.train, clusters=p.k)
    stored, labels = np.load(tokens), np.array([x.category_id for x in train])
    kept = np.isin(stored["ids"], [x.id for x in train])
    by_id = dict(zip(stored["ids"].tolist(), range(len(stored["ids"])), strict=True))
    vectors = stored["tokens"][[by_id[x.id] for x in train]]
    assert kept.sum() == len(train)
    numbers |= truth_scores.of_clusters(labels, truth_scores.classes_of(train, TRUTH, project.index))
    return numbers | quality.measure_clusters(vectors, labels, p, q, params.value("seed", int))


def cluster(project: Project) -> None:
    regions = "choices/true-regions.json"
    project.base = CLUSTER_BASE
    for embedding in EMBED:
        if (file := tokens_file(embedding)).exists():
            for changes in CLUSTER:
                project.row(
                    "cluster",
                    embedding | changes,
                    lambda file=file: cluster_numbers(project, str(file), regions, "choices/instances.json"),  # type: ignore[misc]
                )
    choose_k(project, tokens_file({key: project.chain.get(key) for key in ("embed.descriptor", "embed.layer")}))


def choose_k(project: Project, tokens: Path) -> None:
    """Each K that choose_k tries, with its score and the AMI of K-means."""
    regions = "choices/true-regions.json"
    if not tokens.exists() or any(r["step"] == "choose_k" for r in project.rows):
        return
    project.set({})
    project.stage("choose_k", tokens=str(tokens), masks=regions, output="choices/choose_k.json")
    for tried in json.loads(Path("choices/choose_k.json").read_text()).get("tried", []):

        def way(tried: dict[str, float] = tried) -> dict[str, float]:
            numbers = cluster_numbers(project, str(tokens), regions, "choices/instances.json")
            return numbers | {"k": tried["k"], "choose_score": tried["score"], "choose_stability": tried["stability"]}

        project.row("choose_k", {"cluster.k": int(tried["k"])}, way)


def masks(project: Project) -> None:
    """Masks of all images, clustered; label maps of the train images from masks alone (the round `masks`)."""
    count = len(project.index)

    def way() -> dict[str, float]:
        numbers = project.timed(lambda: project.stage("mine"), count)
        numbers |= truth_scores.of_masks(Path("data/masks.json"), TRUTH, project.index, project.val)
        numbers["embed_seconds"] = project.timed(lambda: project.stage("embed"), count)["seconds"]
        clustered = cluster_numbers(project, "data/cls_tokens.npz", "data/masks.json", "data/instances.json")
        objects = instances.read("data/instances.json", Instance, project.index)
        storage.write_json("data/mask-detections.json", [instances.as_detection(x).to_coco() for x in objects])
        files = {"labels": "data/labels-masks.zip", "detector_predictions": "choices/unused.zip"}
        with contextlib.suppress(InputError):  # an alarm: the label maps are written
            project.stage("aggregate", detections="data/mask-detections.json", **files)
        return numbers | {k: clustered[k] for k in ("purity", "ami")} | {"miou": miou(project, "masks")}

    project.row("masks", {}, way)


def miou(project: Project, name: str) -> float:
    k = params.value("cluster.k", int)
    return truth_scores.miou(Path(f"data/predictions/{name}.zip"), TRUTH, project.val, k)


def detector(project: Project) -> None:
    count = len(project.index)

    def way() -> dict[str, float]:
        trained = project.timed(lambda: project.stage("train_detector"), 1)["seconds"]
        numbers = project.timed(lambda: project.stage("detect"), count)
        numbers["alarm"] = project.timed(lambda: project.stage("aggregate"), 1)["alarm"]
        return numbers | {"training_seconds": trained, "miou": miou(project, "detector")}

    project.row("detector", {}, way)


def segment(project: Project, step: str, name: str, labels: str, changes: Changes, teacher: Changes | None = None) -> None:
    """Train a segmenter on label maps, and predict. teacher: the item of `refine` that makes the label maps first."""

    def way() -> dict[str, float]:
        numbers: dict[str, float] = {}
        if teacher:
            numbers["relabel_seconds"] = project.timed(lambda: project.stage("relabel", teacher), len(project.train))["seconds"]
        files = {"labels": f"data/labels-{labels}.zip"}
        numbers["training_seconds"] = project.timed(lambda: project.stage("train_segmenter", name, **files), 1)["seconds"]
        numbers |= project.timed(lambda: project.stage("predict", name), len(project.val))
        return numbers | {"miou": miou(project, name)}

    project.row(step, changes, way, f"{name} on {labels}:")


def deeplab(project: Project) -> None:
    segment(project, "deeplab", "deeplab", "masks", DEEPLAB)


def student(project: Project) -> None:
    for name, (labels, changes) in STUDENTS.items():
        segment(project, "student", name, labels, STUDENT | changes)


def rounds(project: Project) -> None:
    """Students of the label maps that `conv-masks` makes; and that student's own predictions, averaged and with the CRF."""
    start = "conv-masks"
    for name, changes in ROUNDS.items():
        item = {"from": start, "to": name}
        values = STUDENT | STUDENTS[start][1] | changes
        segment(project, "rounds", name, name, values | {"refine": [item], "rounds": [start, name], "final": name}, item)
    storage.write_json("choices/val.json", {"images": [vars(i) | {"split": "both"} for i in project.val]})
    item = {"from": start, "to": "shown"}

    def way() -> dict[str, float]:
        files = {"index": "choices/val.json", "labels": "data/predictions/shown.zip"}
        numbers = project.timed(lambda: project.stage("relabel", item, **files), len(project.val))
        return numbers | {"miou": miou(project, "shown")}

    for crf in (False, True):
        changes = {"relabel.crf": crf, "relabel.flip": True}
        project.row("rounds", changes | {"refine": [item]}, way, f"{start}, its predictions:")


LABELLED = ("foreground", "first", "region", "whole", "purity", "ami", "largest", "seconds", "training_seconds", "k")
STEPS = {
    "mine": mine,
    "embed": embed,
    "cluster": cluster,
    "masks": masks,
    "detector": detector,
    "deeplab": deeplab,
    "student": student,
    "rounds": rounds,
}
SHARING = ("mine", "student", "rounds")  # steps whose choices share what a network computes


# The table


def table(rows: Sequence[dict[str, Any]]) -> str:
    groups = {step: [r for r in rows if r["step"] == step] for step in ("mine", "embed", "cluster", "choose_k")}
    groups["mIoU"] = [r for r in rows if r["step"] not in groups]
    lines = []
    for step, group in groups.items():
        keys = list(dict.fromkeys(k for r in group for k in r if k not in ("step", "name")))
        lines += ["", f"{step}: {len(group)} rows", " ".join(f"{k[:16]:>16}" for k in keys)] if group else []
        for r in group:
            lines.append(" ".join(f"{r[k]:>16.4f}" if k in r else f"{'-':>16}" for k in keys) + f"  {r['name']}")
        if group and step in SCORE:
            free = [k for k in keys if k not in LABELLED or k == SCORE[step]]
            rho = truth_scores.spearman([{k: r[k] for k in free if k in r} for r in group], SCORE[step])
            lines.append(
                f"rank correlation with {SCORE[step]}: " + ", ".join(f"{k} {x:+.2f} (n {n})" for k, (x, n) in rho.items())
            )
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="folder that keeps the project and the rows (default: a temporary one)")
    parser.add_argument("--weights", type=Path, default=STAND_IN)
    parser.add_argument("--data", type=Path, default=SHARED / "VOC2012")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--photos", type=int, default=80, help="evaluation images of the step mine")
    parser.add_argument("--quick", action="store_true", help="60 train and 60 evaluation images, 12 for mining")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the chain")
    options = parser.parse_args(words)
    human = f"backbone {options.weights}"
    if options.weights == STAND_IN:
        human += ": fine-tuned WITH HUMAN LABELS; nothing here is a result without labels"
    print(human, flush=True)
    chain = CHAIN | {key: yaml.safe_load(text) for key, text in (setting.split("=", 1) for setting in options.set)}
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.into or Path(temporary)).resolve()
        photos = 12 if options.quick else options.photos
        project = Project(root, options.weights, options.data, chain, options.quick, photos)
        if not Path("data/truth.zip").exists():
            project.stage("prepare")
        for step in options.steps:
            start = time.monotonic()
            project.base = {}
            with shared_networks(project.memo) if step in SHARING else contextlib.nullcontext():
                STEPS[step](project)
            print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)
        text = f"{human}\n{table(project.rows)}"
        Path("table.txt").write_text(text, "utf-8")
        print(text, end="")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
