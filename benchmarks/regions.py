"""Every way to mine, side by side on photographs with ground truth: IoU of the foreground, seconds an image.

    python -m benchmarks.regions WEIGHTS [--voc ../shared/data/VOC2012] [--count 60] [--resize 448] [--only WORD ...]
        [--train 0] [--keep FOLDER] [--set key=value ...]

WEIGHTS: a file of a ViT. The foreground is the union of an image's masks, against every class of `SegmentationClass` together;
void is left out. IoU is the mean over the photographs of val.txt, evenly spaced; `pooled` is that of all pixels together. `area`
is the fraction of the photograph that is foreground, `masks` their number. Seconds are of the method alone, without the ViT,
whose facets are read once and kept. --only: rows whose name contains one of the words. --train: photographs of train.txt from
which the foreground heads learn, without labels; 0: no head. --keep: a folder for facets, which a next run with
the same ViT need not read again. --set: changes of the group mine in all rows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import params
from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.engine.checkpoint import Checkpoint
from unseg.mining import affinity, averaging, foreground, methods, miner
from unseg.models import vit
from unseg.models.facets import Facets

Row = tuple[str, dict[str, Any], str]  # name, changes of the group mine, name of the head


def records(voc: Path, split: str, count: int) -> list[ImageRecord]:
    names = (voc / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]
    sizes = [Pillow.open(voc / f"JPEGImages/{name}.jpg").size for name in chosen]
    return [ImageRecord(i, f"{name}.jpg", h, w, "train") for i, (name, (w, h)) in enumerate(zip(chosen, sizes, strict=True))]


def rows(heads: list[str]) -> Iterator[Row]:
    """What is compared; a row's name says its changes of the group mine."""
    for facet in ("keys", "values", "tokens"):
        for center in (False, True):
            yield f"maskdistill {facet}{' centred' * center}", {"facet": facet, "center": center}, ""
    tokens: dict[str, Any] = {"facet": "tokens", "center": True}
    for method in ("attention", "lost"):
        yield f"{method} tokens centred", {"method": method, **tokens}, ""
    variants: dict[str, dict[str, Any]] = {
        "softmax": {"rank": "softmax"},
        "cosine": {"normalize": True},
        "cosine otsu": {"normalize": True, "threshold": "otsu"},
        "otsu": {"threshold": "otsu"},
        "cosine 0.2": {"normalize": True, "threshold": 0.2},
        "softmax component": {"rank": "softmax", "component": True},
        "flip": {"flip": True},
        "flip, scales .75 1 1.25": {"flip": True, "scales": [0.75, 1.0, 1.25]},
        "3 objects": {"objects": 3},
    }
    for name, changes in variants.items():
        yield f"maskdistill tokens centred, {name}", tokens | changes, ""
    for facet, center in (("keys", False), ("tokens", False), ("tokens", True)):
        for threshold in (0.2, "otsu"):
            changes = {"method": "tokencut", "facet": facet, "center": center, "threshold": threshold}
            yield f"tokencut {facet}{' centred' * center} {threshold}", changes, ""
    yield "tokencut tokens centred otsu, 3 objects", {"method": "tokencut", **tokens, "threshold": "otsu", "objects": 3}, ""
    for threshold in (0.3, 0.5, "otsu"):
        for objects in (1, 5):
            changes = {"method": "regions", **tokens, "threshold": threshold, "objects": objects}
            yield f"regions tokens centred {threshold}, {objects} objects", changes, ""
    for head in heads:
        yield f"head {head}", {"method": "head"}, head
        yield f"head {head}, 3 objects", {"method": "head", "objects": 3}, head


def heads(model: vit.ViT, voc: Path, count: int) -> dict[str, torch.nn.Conv2d]:
    """Heads by their choices, each trained on so many photographs of train.txt."""
    trained = {}
    p = read_group("foreground", foreground.Foreground)
    for facet, center, threshold, corners in HEADS if count else ():
        name = f"{facet}{' centred' * center} {threshold}{' corners' * corners}"
        changed = replace(p, facet=facet, center=center, threshold=threshold, corners=corners)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            images, start = records(voc, "train", count), time.perf_counter()
            with Checkpoint(f"{folder}/head", [name], []) as checkpoint:
                head, values = foreground.train(changed, model, str(voc / "JPEGImages"), images, 0, checkpoint)
            last = {key: round(value, 3) for key, value in values[-1].items()}
            print(f"head {name}: {time.perf_counter() - start:.0f} s, last step {last}", flush=True)
            trained[name] = head.requires_grad_(False)
    return trained


HEADS: tuple[tuple[Any, bool, Any, bool], ...] = (  # facet, center, threshold, corners
    ("keys", True, "otsu", False),
    ("tokens", True, 0.0, False),
    ("tokens", True, "otsu", False),
    ("tokens", True, "otsu", True),
)


def read_group(key: str, kind: type[Any], **changes: Any) -> Any:
    """A group of profiles/base.yaml, changed."""
    values = yaml.safe_load((ROOT / "profiles/base.yaml").read_text())[key]
    return params.check(key, kind, values | changes, "profiles/base.yaml")


def facets_of(model: vit.ViT, voc: Path, images: list[ImageRecord], p: affinity.Mining, kept: Path | None) -> dict[int, Facets]:
    """The facets of each image; of `kept`, a folder with those of earlier runs, if it has them."""
    name = f"{p.facet} {p.layer} {p.flip} {p.scales} {p.resize} {len(images)}".replace("/", "")
    if kept and (kept / name).exists():
        return {i: Facets(*x) for i, x in torch.load(kept / name).items()}
    read: dict[int, Facets] = {}
    start = time.perf_counter()
    batches = miner.load_batches(model, images, lambda i: i.size, lambda i: photos.read(voc / "JPEGImages", i), p)
    for batch, pixels in batches:
        found = averaging.read(model, pixels, p)
        read |= {image.id: Facets(*(x[i : i + 1].clone() for x in found)) for i, image in enumerate(batch)}
    print(f"  the ViT, {p.facet}, flip {p.flip}, scales {p.scales}: {(time.perf_counter() - start) / len(images):.2f} s an image")
    if kept:
        kept.mkdir(exist_ok=True)
        torch.save({i: tuple(x) for i, x in read.items()}, kept / name)
    return read


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--voc", type=Path, default=ROOT / "../shared/data/VOC2012")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--resize", type=int, default=448)
    parser.add_argument("--train", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--set", nargs="+", default=[])
    options = parser.parse_args()
    model = vit.load(vit.Backbone(options.weights, None, None, None, None))
    patch, images = vit.patch_size(model), records(options.voc, "val", options.count)
    truths = {i.id: np.array(Pillow.open(options.voc / f"SegmentationClass/{Path(i.file_name).stem}.png")) for i in images}
    trained, cache = heads(model, options.voc, options.train), {}
    common = {key: yaml.safe_load(x) for key, x in (item.split("=", 1) for item in options.set)}
    print(f"{len(images)} photographs, shorter side {options.resize}, {torch.get_num_threads()} threads")
    print(f"{'':48}   IoU pooled  area  masks  seconds")
    chosen = []
    for name, changes, head in rows(list(trained)):
        base = {"resize": options.resize, "head": head or "models/fresh", "component": False}
        p = read_group("mine", affinity.Mining, **(base | common | changes))
        read = replace(p, facet="values" if p.facet == "values" else "tokens", method="maskdistill")
        key = (read.facet, read.layer, p.flip, *p.scales)
        chosen += [(key, name, p, read, head)] if any(word in name for word in options.only) else []
    for key, name, p, read, head in sorted(chosen, key=lambda row: row[0]):
        if key not in cache:
            cache = {key: facets_of(model, options.voc, images, read, options.keep)}  # one at a time, for memory
        common_pixels = union_pixels = count = 0
        ious, areas, seconds = [], [], 0.0
        for image in images:
            resized, facets = photos.short_side(image.size, p.resize), cache[key][image.id]
            if p.facet == "keys" and not head:  # read together with the tokens
                facets = facets._replace(features=facets.keys)
            start = time.perf_counter()
            (masks,) = methods.mine_batch(facets, (-(-resized[0] // patch), -(-resized[1] // patch)), p, trained.get(head))
            seconds += time.perf_counter() - start
            mask = np.any([affinity.to_pixels(m, resized, image.size, patch) for m in masks], 0)
            truth, valid = truths[image.id] > 0, truths[image.id] != 255
            common_mask, union = int((mask & truth & valid).sum()), int(((mask | truth) & valid).sum())
            ious.append(common_mask / max(1, union))
            areas.append(float(mask.mean()))
            common_pixels, union_pixels, count = common_pixels + common_mask, union_pixels + union, count + len(masks)
        n = len(images)
        print(
            f"{name:48}  {np.mean(ious):.3f}  {common_pixels / union_pixels:.3f}  {np.mean(areas):.2f}  {count / n:5.1f}  "
            f"{seconds / n:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
