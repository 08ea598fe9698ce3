"""COCO's size: prepare, cluster, aggregate and the evaluations on synthetic records in the real formats; peak memory and time.

    python -m benchmarks.scale [folder] [images ...]

By default 30,000, 60,000 and 120,000 photographs (hard links to a few small ones), seven objects each (as in COCO; half of them
polygons of thirty corners), one mask, tokens of 384 channels, 10 detections (`--detections N` sets how many). All are learned
from and judged; average precision, for which COCO's own evaluation must hold what it judges, is of a fortieth, as in COCO.
Each stage runs in a process of its own, whose peak memory and processor time are what the system says of it; time is linear
where the last column stays as it is.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import yaml
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import rle, storage

SIDE, KINDS, K, CHANNELS, DETECTIONS, OBJECTS = 32, 64, 27, 384, 10, 7  # KINDS: different photographs and masks
LIMIT = 2.0  # GiB
POLYGON = [[round(16 + 9.37 * c, 2) for i in range(30) for c in (np.cos(i / 5), np.sin(i / 5))]]  # as long as COCO's are
STAGES = {
    "prepare": "data/images.json data/rejected.json data/truth.zip",
    "cluster": "data/cls_tokens.npz data/masks.json data/instances.json",
    "aggregate": "data/images.json raw data/instances.json data/detections.json "
    "data/labels-r0.zip data/predictions/masks.zip data/predictions/detector.zip",
    "evaluate_clustering": "data/images.json data/truth.zip data/instances.json data/predictions results/clustering "
    "results/details/clustering",
    "evaluate_instances": "data/held.json data/truth.zip data/masks.json data/instances.json data/detections.json "
    "results/instances results/details/instances.json results/curve.json",
}


def masks() -> list[rle.Rle]:
    rng, found = np.random.default_rng(0), []
    for _ in range(KINDS):
        mask = np.zeros((SIDE, SIDE), bool)
        y, x = rng.integers(0, SIDE // 2, 2)
        mask[y : y + SIDE // 2, x : x + SIDE // 2] = True
        found.append(rle.encode(mask))
    return found


def lay_out(images: int, detections: int) -> None:
    """What the stages read, in the working directory. A fortieth is held out, as in COCO."""
    Path("raw").mkdir()
    rng, rles = np.random.default_rng(0), masks()
    boxes = [coco_mask.toBbox(r).tolist() for r in rles]
    for i in range(KINDS):
        Pillow.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(f"raw/.{i}.jpg")
    for i in range(images):
        os.link(f"raw/.{i % KINDS}.jpg", f"raw/{i:06}.jpg")

    def objects() -> Iterator[str]:
        for i in range(images):
            for j in range(OBJECTS):
                m = (i + 7 * j) % KINDS
                one = {"id": OBJECTS * i + j, "image_id": i + 1, "category_id": 1 + m % K, "iscrowd": 0}
                yield storage.json_line(one | {"bbox": boxes[m], "segmentation": POLYGON if j % 2 else rles[m]})

    index = [{"id": i + 1, "file_name": f"{i:06}.jpg", "height": SIDE, "width": SIDE} for i in range(images)]
    classes = [{"id": c + 1, "name": f"class {c}"} for c in range(K)]
    storage.write_json("raw/all.json", {"images": index, "annotations": storage.JsonLines(objects()), "categories": classes})
    index = [image | {"split": "train" if i < images - images // 40 else "val"} for i, image in enumerate(index)]
    storage.write_json("data/held.json", {"images": index})
    mined = (storage.json_line(rle.coco_annotation(i + 1, i + 1, 0, rles[i % KINDS])) for i in range(images))
    storage.write_json("data/masks.json", {"images": index, "annotations": storage.JsonLines(mined), "categories": []})
    centres = rng.normal(size=(K, CHANNELS)).astype(np.float32)
    tokens = centres[np.arange(images) % KINDS % K]
    for at in range(0, images, 1000):
        tokens[at : at + 1000] += 0.3 * rng.normal(size=tokens[at : at + 1000].shape).astype(np.float32)
    storage.write_npz("data/cls_tokens.npz", ids=np.arange(1, images + 1), tokens=tokens)
    found = (
        {"image_id": i + 1, "category_id": m % K, "segmentation": rles[m], "bbox": boxes[m], "score": round(1 - j / 300, 4)}
        for i in range(images)
        for j, m in zip(range(detections), count(i), strict=False)
        for m in [m % KINDS]
    )
    storage.write_json("data/detections.json", storage.JsonLines(map(storage.json_line, found)))


def measure(stage: str) -> tuple[float, float]:
    """Peak memory (GiB) and processor seconds of a stage in a process of its own."""
    command = [sys.executable, "-m", f"stages.{stage}", *STAGES[stage].split()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1,)]
    child = os.posix_spawn(sys.executable, command, env, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"{stage} ended with status {os.waitstatus_to_exitcode(status)}")
    return used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime


def main(words: list[str]) -> None:
    detections = DETECTIONS
    if "--detections" in words:
        at = words.index("--detections")
        detections = int(words[at + 1])
        words = words[:at] + words[at + 2 :]
    folder, sizes = Path(words[0] if words else tempfile.gettempdir()), [int(w) for w in words[1:]] or [30_000, 60_000, 120_000]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] = {
        "kind": "coco",
        "root": "raw",
        "images": "raw",
        "train": "all.json",
        "val": "all.json",
        "annotations": None,
    }
    params["cluster"] |= {"k": K, "starts": 1}
    params["rounds"] = []  # only what aggregate makes of masks and detections
    print(f"{'images':>8} {'stage':<20} {'peak, GiB':>10} {'cpu, s':>8} {'ms an image':>12}", flush=True)
    worst = 0.0
    for images in sizes:
        here = Path(tempfile.mkdtemp(prefix="scale-", dir=folder))
        os.chdir(here)
        try:
            Path("params.yaml").write_text(yaml.safe_dump(params))
            lay_out(images, detections)
            for stage in STAGES:
                peak, seconds = measure(stage)
                worst = max(worst, peak)
                print(f"{images:>8} {stage:<20} {peak:>10.2f} {seconds:>8.1f} {1e3 * seconds / images:>12.3f}", flush=True)
        finally:
            os.chdir(ROOT)
            shutil.rmtree(here)
    print(f"largest peak {worst:.2f} GiB: {'within' if worst <= LIMIT else 'ABOVE'} {LIMIT:g} GiB")


if __name__ == "__main__":
    main(sys.argv[1:])
