"""All that wants a GPU, in one run that ends in time: the tests marked gpu, the speed of each step, CrOC pre-training.

    python benchmarks/gpu.py [--minutes 9] [--images FOLDER] [--zips FILE ...] [--out FOLDER] [--small]
    python benchmarks/gpu.py --join FOLDER models/tiny.safetensors    # the files of weights in FOLDER as one ViT

Each part runs in its own process and is ended when its time is over; a part that fails is reported, and the rest goes on. Parts:
tests   `pytest -m gpu`
peak    the fastest product of bf16 matrices (fp32 on a CPU without bfloat16 units)
croc, mine, embed, detector, deeplab, tokens, student
        the stages themselves on random weights, at the papers' sizes: ViT-S/16, ResNet-50 with FPN, DeepLab-v3 on ResNet-50, the
        tokens of a ViT student and the training of its head. Images per second with the loading of data; the fraction of that
        peak (floating-point operations by torch.utils.flop_counter, which leaves out RoIAlign and, on a CPU, fused attention);
        the fraction of the time in which the step waits for data; peak memory of the GPU (torch's allocations)
pretrain CrOC with a ViT-S/8 on views of 64 pixels, for the minutes that are left; as many epochs as fit into them
FOLDER gets gpu.json, gpu.txt, log.txt, and the ViT as fp16 in files below 16 MiB (default: $OUT, or results/gpu).
Photographs: --images, or VOC2012 in ../shared/data, or drawn scenes. Archives of small photographs for pretrain: --zips, or
../shared/data/tiny_imagenet_50k_*.zip; without them pretrain uses the photographs.
--small: everything at toy size on the CPU, within two minutes. The exit code is 1 if a part failed.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.stage_speed import fit_until, now, probe
from unseg.core import image_index, instances, label_maps, masks, profiles, storage
from unseg.core.image_index import ImageRecord
from unseg.data import demo, photos

SHARED = ROOT / "../shared/data"
RESERVE = 8.0  # seconds at the end, for the last files
WEIGHTS = {"tests": 3, "pretrain": 5}  # of the time; the other parts have 2
MOST = {"tests": 90.0, "pretrain": math.inf}  # seconds; the other parts have 35, and measure for half of their time
PRETRAIN_RESERVE = 12.0  # seconds for writing the weights
MAX_FILE = 15 << 20  # bytes of tensors in a file of weights
PHOTOS, RECORDS = 128, 4096  # different photographs, and how often they are listed so that no stage runs out of them
SPEED = ("croc", "mine", "embed", "detector", "deeplab", "tokens", "student")
PRELOAD = ["torch", "torchvision", "timm", "sklearn.cluster", "cv2"]  # once, before the parts are forked; none touches a GPU
VIT = {"patch": 16, "width": 384, "depth": 12, "heads": 6}
FRESH = "models/fresh"
Changes = dict[str, Any]


def vit(shape: dict[str, int]) -> Changes:
    """Values of params.yaml for random ViTs of a shape, and without alarms: what random weights mine is no object."""
    groups = {f"{group}.{key}": x for group in ("backbone", "embedder") for key, x in {"weights": FRESH, **shape}.items()}
    return groups | {"alarms.masks.min_area": 0.0, "alarms.masks.max_area": 1.0, "alarms.masks.max_missing": 1.0}


REAL: Changes = vit(VIT) | {
    "mine.precision": "auto",
    "embed.precision": "auto",
    "detector.init": FRESH,
    "segmenter.init": FRESH,
    "segmenter.epochs": 1,
}
SMALL: Changes = vit({"patch": 8, "width": 32, "depth": 2, "heads": 2}) | {
    "cluster.k": 4,
    "croc.batch": 4,
    "croc.views.size": 32,
    "detector.short_sides": [64],
    "detector.batch": 2,
    "segmenter.batch": 4,
    "segmenter.epochs": 1,
}
STUDENT: Changes = {"segmenter.arch": "vit"}
TINY: Changes = vit(VIT | {"patch": 8}) | {  # CrOC on photographs of 64 pixels, minutes instead of days
    "croc.batch": 512,
    "croc.warmup_epochs": 1,
    "croc.teacher_warmup_epochs": 1,
    "croc.ema": 0.99,
    "croc.drop_path": 0.0,
    "croc.outputs": 8192,
    "croc.outputs_centroid": 4096,
    "croc.norm_last": True,
    "croc.views.size": 64,
    "croc.views.blur": 0.6,
    "croc.clustering.features": "keys",
    "croc.clustering.position_weight": 3.0,
}


@dataclass(frozen=True)
class Plan:
    """What a part's process needs."""

    work: Path  # folder of inputs, and of what the stages write
    images: Path  # photographs
    zips: list[Path]
    out: Path
    small: bool
    seconds: float  # to measure
    deadline: float  # time.time() at which the part must have ended


# Inputs


def draw_photographs(folder: Path, small: bool) -> None:
    """Drawn scenes as JPEGs of VOC's size, or of two small sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(12 if small else 48):
        pixels, _ = demo.scene(rng, 64 if small else 128)
        size = ((64, 64), (80, 64))[i % 2] if small else ((500, 375), (375, 500))[i % 4 == 3]
        Pillow.fromarray(pixels).resize(size, Pillow.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)


def write_inputs(work: Path, images: Path, small: bool, k: int) -> None:
    """The files that the stages read: the index, one or two ellipses on each photograph in K clusters, and their label maps."""
    files = sorted(f for f in images.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = image_index.evenly_spaced(files, 12 if small else PHOTOS)
    if not files:
        sys.exit(f"{images} has no .jpg, .jpeg or .png; name a folder of photographs by --images")
    rng, sizes = np.random.default_rng(0), [photos.open_rgb(f).size[::-1] for f in files]
    drawn = [[ellipse(rng, size) for _ in range(1 + i % 2)] for i, size in enumerate(sizes)]
    records = [
        ImageRecord(n + 1, files[n % len(files)].name, *sizes[n % len(files)], "train") for n in range(12 if small else RECORDS)
    ]
    encoded = [[masks.encode(mask) for mask in of_image] for of_image in drawn]
    ids = itertools.count(1)
    objects = [
        instances.instance(next(ids), record.id, (n + j) % k, mask).to_coco()
        for n, record in enumerate(records)
        for j, mask in enumerate(encoded[n % len(files)])
    ]
    content = {"images": [asdict(r) for r in records], "annotations": objects}
    storage.write_json(work / "images.json", {"images": content["images"]})
    storage.write_json(work / "instances.json", content | {"categories": [{"id": c, "name": str(c)} for c in range(k)]})
    maps = []
    for n, file in enumerate(files):
        labels = np.zeros(sizes[n], np.uint8)
        for j, mask in enumerate(drawn[n]):
            labels[mask] = (n + j) % k + 1
        maps.append((file.name, labels))
    label_maps.write_label_maps(work / "labels.zip", maps)


def ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] bool inside an image of size (H, W)."""
    (h, w), (cy, cx) = size, rng.uniform(0.3, 0.7, 2) * size
    y, x = np.ogrid[:h, :w]
    return np.asarray(((y - cy) / (rng.uniform(0.1, 0.3) * h)) ** 2 + ((x - cx) / (rng.uniform(0.1, 0.3) * w)) ** 2 <= 1)


def set_params(plan: Plan, profile: str, changes: Changes) -> None:
    """Write params.yaml to the working directory."""
    Path("params.yaml").write_text(profiles.render("demo" if plan.small else profile, changes, ROOT / "profiles"), "utf-8")


# Parts: each runs in a process of its own, in a folder of its own


def peak(plan: Plan) -> dict[str, Any]:
    """Operations per second of a product of square matrices, the fastest of 20."""
    import torch

    from unseg.engine import environment
    from unseg.engine.precision import fastest_precision

    device = environment.device()
    precision, side = fastest_precision(device), 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(20):
        start = now()
        left @ right
        best = min(best, now() - start)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"flops": 2 * side**3 / best, "precision": precision, "device": name, "torch": torch.__version__}


def croc(plan: Plan) -> dict[str, Any]:
    from stages import pretrain

    set_params(plan, "croc_coco", SMALL if plan.small else REAL)
    files = (str(plan.work / "images.json"), str(plan.images), "croc.safetensors", "croc.tsv")
    return probe(plan.seconds, True, lambda: pretrain.main(*files)).to_record()


def mine(plan: Plan) -> dict[str, Any]:
    from stages import mine

    set_params(plan, "voc", SMALL if plan.small else REAL)
    files = (str(plan.work / "images.json"), str(plan.images), FRESH, "masks.json")
    return probe(plan.seconds, False, lambda: mine.main(*files)).to_record()


def embed(plan: Plan) -> dict[str, Any]:
    from stages import embed

    set_params(plan, "voc", SMALL if plan.small else REAL)
    files = (str(plan.work / "images.json"), str(plan.work / "instances.json"), str(plan.images), FRESH, "tokens.npz")
    return probe(plan.seconds, False, lambda: embed.main(*files)).to_record()


def detector(plan: Plan) -> dict[str, Any]:
    from stages import train_detector

    set_params(plan, "voc", SMALL if plan.small else REAL)
    files = (str(plan.work / "images.json"), str(plan.work / "instances.json"), str(plan.images), "d.safetensors", "d.tsv")
    return probe(plan.seconds, True, lambda: train_detector.main(*files)).to_record()


def segmenter(plan: Plan, changes: Changes, training_only: bool) -> dict[str, Any]:
    from stages import train_segmenter

    set_params(plan, "voc", (SMALL if plan.small else REAL) | changes)
    index = plan.work / "images.json"
    if training_only and changes:  # the student computes the tokens of all its images first
        records = image_index.read_images(index)[:PHOTOS]
        index = Path("few.json")
        storage.write_json(index, {"images": [asdict(r) for r in records]})
    files = (str(index), str(plan.work / "labels.zip"), str(plan.images), "s.safetensors", "s.tsv")
    return probe(plan.seconds, training_only, lambda: train_segmenter.main(*files)).to_record()


def deeplab(plan: Plan) -> dict[str, Any]:
    return segmenter(plan, {}, True)


def tokens(plan: Plan) -> dict[str, Any]:
    return segmenter(plan, STUDENT, False)


def student(plan: Plan) -> dict[str, Any]:
    return segmenter(plan, STUDENT, True)


def pretrain(plan: Plan) -> dict[str, Any]:
    """CrOC until the deadline; the speed of its first steps says how many epochs there will be."""
    from stages import pretrain

    os.environ.setdefault("UNSEG_WORKERS", str(max(0, len(os.sched_getaffinity(0)) - 1)))
    records, root = list_archives(plan.zips), plan.zips[0].parent if plan.zips else plan.images
    records = (records or image_index.read_images(plan.work / "images.json"))[: 16 if plan.small else None]
    storage.write_json("images.json", {"images": [asdict(r) for r in records]})
    changes = SMALL if plan.small else TINY
    files = ("images.json", str(root), "croc.safetensors", "croc.tsv")
    set_params(plan, "croc_imagenet", changes)
    speed = probe(min(10.0, plan.seconds), True, lambda: pretrain.main(*files))
    end = plan.deadline - PRETRAIN_RESERVE
    epochs = max(1, int(max(0.0, end - time.time()) * speed.images / speed.seconds * 0.95 / len(records)))
    epochs = min(epochs, 2) if plan.small else epochs
    set_params(plan, "croc_imagenet", changes | {"croc.epochs": epochs})
    from unseg.engine import training

    with mock.patch.object(training, "fit", fit_until(end)):
        pretrain.main(*files)
    history = [line.split("\t") for line in Path("croc.tsv").read_text().splitlines()]
    first, last = (dict(zip(history[0], map(float, row), strict=True)) for row in (history[1], history[-1]))
    parts = split_weights(Path("croc.safetensors"), plan.out)
    about = {"images_in_set": len(records), "source": [z.name for z in plan.zips] or str(plan.images), "epochs": epochs}
    return speed.to_record() | about | {"first": first, "last": last, "files": parts}


def list_archives(zips: list[Path]) -> list[ImageRecord]:
    """Records of all photographs in archives of one folder; their size is that of the first, which CrOC does not read."""
    names = [f"{path.name}/{name}" for path in zips for name in zipfile.ZipFile(path).namelist() if not name.endswith("/")]
    size = photos.open_rgb(zips[0].parent / names[0]).size[::-1] if names else (0, 0)
    return [ImageRecord(n + 1, name, *size, "train") for n, name in enumerate(names)]


def split_weights(weights: Path, out: Path) -> list[str]:
    """Write a ViT of unseg as fp16 into files below MAX_FILE and a header; returns their names. `join` reads them."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(weights, "pt") as file:
        about = file.metadata()
        state = {key: file.get_tensor(key).half() for key in sorted(file.keys())}
    groups: list[dict[str, torch.Tensor]] = [{}]
    for key, x in state.items():
        if groups[-1] and sum(y.nbytes for y in groups[-1].values()) + x.nbytes > MAX_FILE:
            groups.append({})
        groups[-1][key] = x
    names = [f"croc-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        save_file(group, out / name, about)
    return names


def join(folder: Path, output: Path) -> None:
    """Write the files of `split_weights` as one file of weights, fp32."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted(folder.glob("croc-*-of-*.safetensors"))
    if not files or len(files) != int(files[0].stem[-5:]):
        sys.exit(f"{folder} has {len(files)} files croc-*-of-*.safetensors, which are not all; copy the others there, too")
    state: dict[str, Any] = {}
    about: dict[str, str] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            state |= {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    save_file(state, output, about)


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "peak": peak,
    "croc": croc,
    "mine": mine,
    "embed": embed,
    "detector": detector,
    "deeplab": deeplab,
    "tokens": tokens,
    "student": student,
    "pretrain": pretrain,
}


def child(name: str, plan: Plan, result: Path) -> None:
    """Run a part in this process, which is its own: its output goes to the log, its result or its error to a file."""
    log = os.open(plan.out / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    folder = plan.work / name
    (folder / "models").mkdir(parents=True)
    (folder / FRESH).write_bytes((ROOT / FRESH).read_bytes())
    os.chdir(folder)
    os.environ["UNSEG_SCRATCH"] = "scratch"
    try:
        record = PARTS[name](plan)
    except BaseException as error:
        traceback.print_exc()
        record = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    storage.write_json(result, record)


def run_part(name: str, plan: Plan, context: Any) -> dict[str, Any]:
    result = plan.work / f"{name}.json"
    process = context.Process(target=child, args=(name, plan, result))
    process.start()
    process.join(max(1.0, plan.deadline - time.time()))
    if process.is_alive():
        process.kill()
        process.join()
        return {"error": "ended: its time was over"}
    if not result.exists():
        return {"error": f"its process ended with code {process.exitcode}; see log.txt"}
    record: dict[str, Any] = json.loads(result.read_text())
    return record


def run_tests(out: Path, limit: float) -> dict[str, Any]:
    """`pytest -m gpu` on the files that have such tests; others may need packages that a bare machine lacks."""
    files = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n0", "-rs", "-p", "no:cacheprovider", *files]
    with (out / "log.txt").open("a") as log:
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
            log.write(output.decode() if isinstance(output, bytes) else output)
            return {"error": f"not done after {limit:.0f} s"}
        log.write(done.stdout)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])}
    return counts | (
        {"error": f"pytest ended with code {done.returncode}"} if done.returncode or not counts.get("passed") else {}
    )


# The report


def table(results: dict[str, Any]) -> str:
    top = results.get("peak", {})
    lines = [f"{top.get('device', 'unknown device')}, torch {top.get('torch', '?')}, {len(os.sched_getaffinity(0))} cores"]
    if "flops" in top:
        lines.append(f"peak of matrix products: {top['precision']} {top['flops'] / 1e12:.3g} TFLOP/s")
    lines.append(f"{'part':<9} {'images/s':>9} {'of peak':>8} {'waiting':>8} {'GiB':>7} {'seconds':>8}")
    for name, x in results.items():
        if "images_per_second" in x:
            rate, used = x["images_per_second"], x["gflop_per_image"] * 1e9 * x["images_per_second"]
            share = f"{used / top['flops']:.1%}" if "flops" in top else "-"
            gib = "-" if x["memory_gib"] is None else f"{x['memory_gib']:.2f}"
            lines.append(f"{name:<9} {rate:>9.2f} {share:>8} {x['waiting_for_data']:>8.1%} {gib:>7} {x['seconds']:>8.1f}")
        elif name != "peak" or "error" in x:
            text = ", ".join(f"{k} {v}" for k, v in x.items() if k not in ("seconds", "error"))
            lines.append(f"{name:<9} {text} {x['seconds']:.1f} s")
        if "error" in x:
            lines.append(f"  FAILED: {x['error']}")
    if "last" in (x := results.get("pretrain", {})):
        lines.append(
            f"pretrain: {x['images_in_set']} images of {x['source']}, {x['epochs']} epochs planned; means of the history:"
        )
        lines += [f"  {when}: " + " ".join(f"{k} {v:.4g}" for k, v in x[when].items()) for when in ("first", "last")]
        lines.append(f"  weights: {' '.join(x['files'])}")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--zips", type=Path, nargs="*", help="archives of small photographs, in one folder")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "results/gpu"))
    parser.add_argument("--parts", nargs="+", choices=["tests", *PARTS], default=["tests", *PARTS])
    parser.add_argument("--small", action="store_true", help="everything at toy size, on the CPU")
    parser.add_argument("--join", type=Path, nargs=2, metavar=("FOLDER", "FILE"), help="only join files of weights")
    options = parser.parse_args(words)
    if options.join:
        join(*options.join)
        return 0
    begin, out = time.time(), options.out.resolve()
    end = begin + 60 * options.minutes - RESERVE
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").unlink(missing_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if options.small:
        os.environ |= {"UNSEG_DEVICE": "cpu", "UNSEG_WORKERS": "0"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    warm_up = context.Process(target=int)  # so that no part's time goes to the imports
    warm_up.start()
    warm_up.join()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images, zips = choose_data(options, work)
        write_inputs(work, images, options.small, 4 if options.small else 20)
        for name in options.parts:
            start = time.time()
            limit, seconds = part_time(name, options.parts, end - start, options.small)
            if limit < 2:
                record: dict[str, Any] = {"error": "not started: no time was left"}
            elif name == "tests":
                record = run_tests(out, limit)
            else:
                record = run_part(name, Plan(work, images, zips, out, options.small, seconds, start + limit), context)
            results[name] = record | {"seconds": round(time.time() - start, 1)}
            print(f"{name}: {record.get('error', 'done')} ({time.time() - begin:.0f} s)", flush=True)
            storage.write_json(out / "gpu.json", results)
            (out / "gpu.txt").write_text(table(results), "utf-8")
    print(table(results), end="")
    return int(any("error" in x for x in results.values()))


def choose_data(options: argparse.Namespace, work: Path) -> tuple[Path, list[Path]]:
    """The folder of photographs, and the archives for pretrain."""
    voc, drawn = SHARED / "VOC2012/JPEGImages", work / "drawn"
    images = options.images or (voc if voc.is_dir() and not options.small else drawn)
    if images == drawn:
        draw_photographs(drawn, options.small)
    zips = options.zips
    if zips is None:
        zips = [] if options.small else sorted(SHARED.glob("tiny_imagenet_50k_*.zip"))
    return images.resolve(), [path.resolve() for path in zips]


def part_time(name: str, parts: list[str], left: float, small: bool) -> tuple[float, float]:
    """Seconds until a part must have ended, and those in which it measures. The last part has all that is left."""
    weights = [WEIGHTS.get(part, 2) for part in parts[parts.index(name) :]]
    limit = left if len(weights) == 1 else min(left * weights[0] / sum(weights), MOST.get(name, 35.0))
    return limit, 0.5 if small else min(limit, 35.0) / 2


if __name__ == "__main__":
    sys.exit(main())
