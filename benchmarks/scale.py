"""Peak memory and time of stages at COCO's size, on synthetic records in the real formats.

    python -m benchmarks.scale [folder] [images ...] [--detections 10]

By default 30,000, 60,000 and 120,000 photographs (hard links to a few small ones), each with seven true objects (half of them
polygons of thirty corners), one mask with a token of 384 channels, and ten detections. All are trained on and evaluated, but
average precision uses a fortieth of them, as in COCO, because COCO's evaluation holds its objects in memory. Each stage runs in
a process of its own; the system reports its peak memory and processor time. The last column is constant if time is linear.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import instances, masks, storage
from unseg.core.instances import Detection
from unseg.core.masks import Mask

SIDE, KINDS, K, CHANNELS, OBJECTS = 32, 64, 27, 384, 7  # KINDS: different photographs and masks
LIMIT = 2.0  # GiB
POLYGON = [[round(16 + 9.37 * c, 2) for i in range(30) for c in (np.cos(i / 5), np.sin(i / 5))]]  # as long as COCO's
STAGES = {
    "prepare": "--index data/images.json --rejected data/rejected.json --truth data/truth.zip",
    "cluster": "--tokens data/cls_tokens.npz --masks data/masks.json --output data/instances.json",
    "aggregate": "--index data/images.json --images raw --instances data/instances.json --detections data/detections.json "
    "--labels data/labels-r0.zip --mask-predictions data/predictions/masks.zip "
    "--detector-predictions data/predictions/detector.zip",
    "evaluate_clustering": "--index data/images.json --truth data/truth.zip --instances data/instances.json "
    "--predictions data/predictions --results results/clustering --details results/details/clustering",
    "evaluate_instances": "--index data/held.json --truth data/truth.zip --masks data/masks.json --instances data/instances.json "
    "--detections data/detections.json --results results/instances --details results/details/instances.json "
    "--curve results/curve.json",
}


def squares() -> list[Mask]:
    rng, drawn = np.random.default_rng(0), np.zeros((KINDS, SIDE, SIDE), bool)
    for mask in drawn:
        y, x = rng.integers(0, SIDE // 2, 2)
        mask[y : y + SIDE // 2, x : x + SIDE // 2] = True
    return masks.encode_all(drawn)


def write_inputs(images: int, detections: int) -> None:
    """Write the stages' inputs to the working directory."""
    Path("raw").mkdir()
    rng, kinds = np.random.default_rng(0), squares()
    boxes = [kind.bbox for kind in kinds]
    for i in range(KINDS):
        Pillow.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(f"raw/.{i}.jpg")
    for i in range(images):
        os.link(f"raw/.{i % KINDS}.jpg", f"raw/{i:06}.jpg")

    def objects() -> Iterator[str]:
        for i in range(images):
            for j in range(OBJECTS):
                m = (i + 7 * j) % KINDS
                record = {"id": OBJECTS * i + j, "image_id": i + 1, "category_id": 1 + m % K, "iscrowd": 0, "bbox": boxes[m]}
                yield storage.json_line(record | {"segmentation": POLYGON if j % 2 else kinds[m].rle})

    index = [{"id": i + 1, "file_name": f"{i:06}.jpg", "height": SIDE, "width": SIDE} for i in range(images)]
    classes = [{"id": c + 1, "name": f"class {c}"} for c in range(K)]
    storage.write_json("raw/all.json", {"images": index, "annotations": storage.JsonLines(objects()), "categories": classes})
    index = [image | {"split": "train" if i < images - images // 40 else "val"} for i, image in enumerate(index)]
    storage.write_json("data/held.json", {"images": index})
    mined = (instances.instance(i + 1, i + 1, 0, kinds[i % KINDS]) for i in range(images))
    lines = storage.JsonLines(storage.json_line(x.to_coco()) for x in mined)
    storage.write_json("data/masks.json", {"images": index, "annotations": lines, "categories": []})
    centres = rng.normal(size=(K, CHANNELS)).astype(np.float32)
    tokens = centres[np.arange(images) % KINDS % K]
    for at in range(0, images, 1000):
        tokens[at : at + 1000] += 0.3 * rng.normal(size=tokens[at : at + 1000].shape).astype(np.float32)
    storage.write_npz("data/cls_tokens.npz", ids=np.arange(1, images + 1), tokens=tokens)
    detected = (
        Detection(i + 1, m % K, kinds[m], boxes[m], round(1 - j / 300, 4))
        for i in range(images)
        for j in range(detections)
        for m in [(i + j) % KINDS]
    )
    storage.write_json("data/detections.json", storage.JsonLines(storage.json_line(x.to_coco()) for x in detected))


def measure(stage: str) -> tuple[float, float]:
    """Peak memory (GiB) and processor seconds of a stage."""
    command = [sys.executable, "-m", f"stages.{stage}", *STAGES[stage].split()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(sys.executable, command, env, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"{stage} ended with status {os.waitstatus_to_exitcode(status)}")
    return used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()))
    parser.add_argument("images", type=int, nargs="*", default=[30_000, 60_000, 120_000])
    parser.add_argument("--detections", type=int, default=10, help="per image")
    options = parser.parse_args()
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] = {"kind": "coco", "root": "raw", "images": "raw", "train": "all.json", "val": "all.json", "annotations": None}
    params["cluster"] |= {"k": K, "starts": 1}
    params["rounds"] = []  # evaluate masks and detections only
    print(f"{'images':>8} {'stage':<20} {'peak, GiB':>10} {'cpu, s':>8} {'ms per image':>12}", flush=True)
    worst = 0.0
    for images in options.images:
        here = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
        os.chdir(here)
        try:
            Path("params.yaml").write_text(yaml.safe_dump(params))
            write_inputs(images, options.detections)
            for stage in STAGES:
                peak, seconds = measure(stage)
                worst = max(worst, peak)
                print(f"{images:>8} {stage:<20} {peak:>10.2f} {seconds:>8.1f} {1e3 * seconds / images:>12.3f}", flush=True)
        finally:
            os.chdir(ROOT)
            shutil.rmtree(here)
    print(f"largest peak {worst:.2f} GiB: {'within' if worst <= LIMIT else 'ABOVE'} {LIMIT:g} GiB")


if __name__ == "__main__":
    main()
