"""The demo's scores over several seeds, and its ceiling: the same DeepLab trained on the ground truth.

    python benchmarks/demo.py [--seeds 0 1 2] [--into FOLDER] [--set key=value ...]

Each seed runs the whole pipeline, on other scenes too, in a copy of this working tree. The ceiling is the demo's segmenter
trained on the true label maps of the train images for as many steps. Prints clustering mIoU on the evaluation images for each
seed and in the mean, the ratio of the final model to the ceiling, and the seconds of each stage, DVC's own work included.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import image_index, label_maps
from unseg.core.label_maps import LabelMaps
from unseg.evaluation import metrics


def environment() -> dict[str, str]:
    """The environment with this interpreter's programs first on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def call(root: Path, *command: str) -> None:
    log = root / "log.txt"
    with log.open("a") as file:
        done = subprocess.run(command, cwd=root, stdout=file, stderr=subprocess.STDOUT, env=environment())
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed in {root}:\n{log.read_text()[-2000:]}")


def repro(root: Path) -> dict[str, float]:
    """Run `dvc repro`; returns the seconds from the start of each stage to that of the next, or to the end."""
    starts: list[tuple[str, float]] = []
    with (root / "log.txt").open("a") as log:
        pipe = subprocess.Popen(
            ("dvc", "repro"),
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment() | {"PYTHONUNBUFFERED": "1"},
            text=True,
        )
        assert pipe.stdout is not None
        for line in pipe.stdout:
            log.write(line)
            if match := re.match(r"Running stage '(.+)'", line):
                starts.append((match[1].removeprefix("models/dvc.yaml:").removeprefix("data/dvc.yaml:"), time.monotonic()))
    if pipe.wait():
        sys.exit(f"dvc repro failed in {root}:\n{(root / 'log.txt').read_text()[-2000:]}")
    ends = [at for _, at in starts[1:]] + [time.monotonic()]
    return {name: end - at for (name, at), end in zip(starts, ends, strict=True)}


def copy(into: Path, seed: int, settings: list[str]) -> dict[str, Any]:
    """Copy the tracked files of this tree, with another seed and settings "key=value". Returns the params."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, into / name)
    pairs = (setting.split("=", 1) for setting in settings)
    params = edit_params(into, {"seed": seed} | {key: yaml.safe_load(text) for key, text in pairs})
    if not (into / ".git").exists():
        call(into, "git", "init", "-q")
    return params


def edit_params(root: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Change values of params.yaml by dotted key. Returns its content."""
    file = root / "params.yaml"
    params: dict[str, Any] = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        *groups, last = key.split(".")
        node = params
        for group in groups:
            node = node[group]
        node[last] = value
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    return params


def miou(root: Path, name: str) -> float:
    return float(json.loads((root / f"results/clustering/{name}.json").read_text())["miou"])


def ceiling(root: Path) -> float:
    """mIoU of the same segmenter, trained on the ground truth of the train images."""
    truth, index = LabelMaps(root / "data/truth.zip", "semantic/"), root / "data/images.json"
    classes = len(label_maps.class_names(root / "data/truth.zip"))
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["cluster"]["k"] = classes - 1
    folder = params["data"]["images"]
    supervised = root / "supervised"
    supervised.mkdir(exist_ok=True)
    (supervised / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("unseg", "stages", "data", "models"):
        (supervised / name).symlink_to(root / name)
    maps = ((i.file_name, truth[i]) for i in image_index.train_images(index))
    label_maps.write_label_maps(supervised / "truth-train.zip", maps)
    common = f"--index data/images.json --images {folder} --weights s.safetensors"
    for words in (f"train_segmenter {common} --labels truth-train.zip --history s.tsv", f"predict {common} --predictions p.zip"):
        call(supervised, sys.executable, "-m", *f"stages.{words}".split())
    images, prediction = [i for i in image_index.eval_images(index) if i in truth], LabelMaps(supervised / "p.zip")
    confusion = np.sum([metrics.confusion(truth[i], prediction[i], classes, classes) for i in images], 0)
    return metrics.mean(metrics.iou(metrics.clusters_to_classes(confusion, metrics.match(confusion, by="iou"))))


def arguments(description: str | None, kinds: Collection[str] = (), default: Sequence[str] = ()) -> argparse.Namespace:
    """Arguments of a benchmark that runs the demo for several seeds: seeds, into, set and, if there are any, kinds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--into", type=Path, help="folder that keeps the runs (default: a temporary one)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change params.yaml in every run")
    if kinds:
        parser.add_argument("--kinds", nargs="+", default=default, choices=kinds)
    return parser.parse_args()


def seed_folders(options: argparse.Namespace) -> Iterator[tuple[int, Path]]:
    """Yield each seed with an empty folder, below --into or in a temporary one, which is removed at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            root = (options.into or Path(temporary)) / f"seed{seed}"
            root.mkdir(parents=True)
            yield seed, root


def main() -> None:
    options = arguments(__doc__)
    rows: list[dict[str, float]] = []
    for seed, root in seed_folders(options):
        params, start = copy(root, seed, options.set), time.monotonic()
        seconds = repro(root)
        row = {"minutes": (time.monotonic() - start) / 60}
        row |= {name: miou(root, name) for name in ("masks", "detector", *params["rounds"])}
        quality = json.loads((root / "results/instances/masks.json").read_text())
        row["linear"] = float(json.loads((root / "results/linear.json").read_text())["miou"])
        row["truth"] = ceiling(root)
        row["ratio"] = row[params["final"]] / row["truth"]
        print(f"seed {seed}", *(f"{k} {v:.3f}" for k, v in row.items()), sep="  ", flush=True)
        print("  masks:", *(f"{k} {quality[k]:.3f}" for k in ("mean_iou", "corloc")), flush=True)
        print("  seconds:", *(f"{stage} {each:.0f}" for stage, each in seconds.items()), flush=True)
        rows.append(row)
    print("mean  ", *(f"{k} {sum(r[k] for r in rows) / len(rows):.3f}" for k in rows[0]), sep="  ")


if __name__ == "__main__":
    main()
