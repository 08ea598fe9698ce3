"""Mutated inputs for every parser of what strangers wrote: `python -m tests.fuzz [inputs] [seed]`.

Photographs (and archives of them), COCO's JSON, zips of label maps, weights, params.yaml, clusters.yaml. An input may be
refused by the one exception that its parser promises. A fault is whatever else is raised, more than LONGEST seconds of a
processor, or a file that is opened for writing outside the working folder; a crash of the process says where it was.
"""

import copy
import faulthandler
import json
import os
import random
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image as Pillow
from safetensors.torch import save_file

from unseg.clustering import algorithms, choice, naming
from unseg.core import image_index, instances, label_maps, masks, params, storage
from unseg.core.console import InputError
from unseg.data import coco, examination, readers, truth
from unseg.detection import detector
from unseg.engine import training
from unseg.evaluation import linear_probe
from unseg.evaluation.label_free import quality
from unseg.mining import affinity, crops, foreground
from unseg.models import vit, weights
from unseg.pretraining import croc_training
from unseg.segmentation import crf, pseudo_labels, segmenter

ROOT = Path(__file__).parents[1]
LONGEST = 10  # seconds
NUMBERS: list[Any] = [None, True, 0, -1, 1, 2**31, 2**63, 10**40, 1e308, float("nan"), [1, 2], [0.5] * 6]
TEXTS: list[Any] = ["", "../../x", "/etc/passwd", "\0", "\ud800x", "é" * 300, "nan", "1e5"]
JUNK: list[Any] = [*NUMBERS, *TEXTS, [], {}, [[]], [{}], {"a": 1}, {"size": [16, 16], "counts": "0"}]
GROUPS = {
    "data": readers.Data, "backbone": vit.Backbone, "croc": croc_training.Croc,
    "mine": affinity.Mining, "foreground": foreground.Foreground, "embed": crops.Embedding,
    "cluster": algorithms.Clustering, "detector": detector.Detector, "detect": detector.Detect,
    "aggregate": pseudo_labels.Aggregation,
    "segmenter": segmenter.Segmenter, "predict": segmenter.Predict, "crf": crf.Crf, "linear": linear_probe.Linear,
    "quality": quality.Quality, "choose": choice.Choosing,
}  # fmt: skip


class TooLong(BaseException):
    pass


def bent(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, cut out, doubled, or all after a place cut off."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not out:
            break
        at = rng.randrange(min(len(out), rng.choice([64, 512, 10**9])))
        size = rng.choice([1, 1, 2, 4, 8, 64])
        way = rng.randrange(7)
        if way == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            out[at : at + size] = rng.randbytes(size)
        elif way == 2:
            del out[at : at + size]
        elif way == 3:
            out[at:at] = out[at : at + size * 4]
        elif way == 4:
            out[at : at + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
        elif way == 5 and rng.random() < 0.3:
            del out[at:]
        else:
            other = rng.randrange(len(out))
            out[at : at + size] = out[other : other + size]
    return bytes(out)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a tree of JSON with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def swapped(rng: random.Random, tree: Any) -> Any:
    """A tree of JSON in which some nodes are junk, gone, or others."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        found = list(places(tree))
        if not found:
            break
        node, key = rng.choice(found)
        way = rng.random()
        if way < 0.6:
            node[key] = copy.deepcopy(rng.choice(JUNK))
        elif way < 0.75:
            del node[key]
        elif way < 0.9:
            other, name = rng.choice(found)
            there = name in other if isinstance(other, dict) else name < len(other)  # not removed meanwhile
            node[key] = json.loads(json.dumps(other[name])) if there else 0
        elif isinstance(node, dict):
            node[str(rng.choice(JUNK))[:20]] = copy.deepcopy(rng.choice(JUNK))
        else:
            node.insert(key, copy.deepcopy(rng.choice(JUNK)))
    return tree


def text_of(rng: random.Random, tree: Any) -> bytes:
    deep = rng.random()
    if deep < 0.02:
        return b"[" * rng.choice([100, 100_000])
    whole = json.dumps(swapped(rng, tree) if rng.random() < 0.7 else tree).encode()
    return bent(rng, whole) if rng.random() < 0.4 else whole


def huge_png(rng: random.Random) -> bytes:
    """A PNG whose header, with a right checksum, claims any size."""
    buffer = BytesIO()
    Pillow.new("L", (16, 16)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    sizes = [0, 1, 16, 17, 60_000, 2**31 - 1, 2**32 - 1]
    data[16:24] = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


class Fuzz:
    """The parsers' inputs, made once in the working folder; each method tries one mutated input."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
        self.photos = []
        for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000"):
            buffer = BytesIO()
            exif = Pillow.Exif()
            exif[0x0112] = 6
            Pillow.fromarray(pixels).save(buffer, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}))
            self.photos.append((form.lower(), buffer.getvalue()))
        Path("photos").mkdir()
        for i in range(3):
            Pillow.fromarray(pixels).save(f"photos/{i}.png")
        images = [{"id": i + 1, "file_name": f"{i}.png", "height": 16, "width": 16} for i in range(3)]
        shapes: list[Any] = [
            [[1, 1, 9, 1, 9, 9]],
            {"size": [16, 16], "counts": [0, 100, 156]},
            masks.encode(np.eye(16, dtype=bool)).rle,
        ]
        same = {"category_id": 7, "bbox": [1, 1, 8, 8], "iscrowd": 0}
        objects = [same | {"id": i, "image_id": i + 1, "segmentation": shape} for i, shape in enumerate(shapes)]
        self.coco_json = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "dog"}]}
        self.index = [image_index.ImageRecord(i + 1, f"{i}.png", 16, 16, "train") for i in range(3)]
        self.map = storage.encode_png(np.eye(16, dtype=np.uint8))
        net = segmenter.DeepLab("resnet18", 1, 8, [1, 2, 4], 3)
        segmenter.write_segmenter(
            "net.safetensors", net, {"arch": "resnet18", "width": 1, "stride": 8, "rates": [1, 2, 4], "labels": 3}, 32, "fp32"
        )
        self.net = Path("net.safetensors").read_bytes()
        save_file(vit.build(vit.Shape(8, 8, 1, 1), 16).state_dict(), "vit.safetensors")
        self.vit = Path("vit.safetensors").read_bytes()
        torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}}, "net.pth")
        self.pth = Path("net.pth").read_bytes()
        self.params = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.clusters = {"clusters": {0: {"name": "dog", "colour": "#e69f00"}, 1: {"merge": 0}, 2: {"ignore": True}}}

    def photo(self) -> None:
        form, data = self.rng.choice(self.photos)
        data = huge_png(self.rng) if self.rng.random() < 0.1 else bent(self.rng, data)
        Path("photos/x." + form).write_bytes(data)
        found = examination.examine_file(
            Path("photos").resolve(), readers.Candidate("x." + form, "train", annotated=self.rng.random() < 0.5)
        )
        assert isinstance(found, (str, tuple))
        Path("photos/x." + form).unlink()

    def archive(self) -> None:
        with zipfile.ZipFile("photos/x.zip", "w", self.rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            for name in (
                "a.png",
                self.rng.choice(["../b.png", "/c.png", "d/../../e.png", "\\f.png", "g" * 300 + ".png", "h.PNG"]),
            ):
                file.writestr(name, bent(self.rng, self.photos[0][1]) if self.rng.random() < 0.5 else self.photos[0][1])
        Path("photos/x.zip").write_bytes(bent(self.rng, Path("photos/x.zip").read_bytes()))
        data = readers.Data("folder", "photos", "photos", None, None, None)
        examination.photos.open_archive.cache_clear()
        examination.examine(data, readers.find_dataset(data))
        Path("photos/x.zip").unlink()

    def coco(self) -> None:
        Path("train.json").write_bytes(text_of(self.rng, self.coco_json))
        data = readers.Data("coco", ".", "photos", "train.json", None, None)
        index, _ = examination.examine(data, readers.find_dataset(data))
        for name, _ in truth.members(data, index):
            assert "photos" not in name
        coco.read(Path("train.json"), Path("photos"))

    def instances(self) -> None:
        mask = masks.encode(np.eye(16, dtype=bool))
        records = [instances.instance(i, 1 + i % 3, i % 2, mask).to_coco() for i in range(6)]
        text = text_of(self.rng, {"annotations": records})
        if self.rng.random() < 0.6:
            text = bent(self.rng, storage.to_json({"annotations": records}).encode())
        Path("instances.json").write_bytes(text)
        for x in instances.read("instances.json", instances.Instance, self.index, clusters=2):
            assert x.mask.decode().shape == (16, 16)

    def label_zip(self) -> None:
        data = (
            huge_png(self.rng) if self.rng.random() < 0.2 else bent(self.rng, self.map) if self.rng.random() < 0.6 else self.map
        )
        with zipfile.ZipFile("labels.zip", "w", self.rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            file.writestr(self.rng.choice(["0.png.png", "0.png.png", "../0.png.png"]), data)
            file.writestr("classes.json", text_of(self.rng, {"classes": ["background", "dog"]}))
        if self.rng.random() < 0.6:
            Path("labels.zip").write_bytes(bent(self.rng, Path("labels.zip").read_bytes()))
        try:
            found = label_maps.LabelMaps("labels.zip")[self.index[0]]
            assert found.shape == (16, 16)
            assert found.dtype == np.uint8
        finally:
            label_maps.class_names("labels.zip")

    def weights(self) -> None:
        which = self.rng.randrange(4)
        data = (self.net, self.net, self.vit, self.pth)[which]
        if which < 3:  # the header: 8 bytes of its length, JSON, then the numbers
            size = struct.unpack("<Q", data[:8])[0]
            header = text_of(self.rng, json.loads(data[8 : 8 + size])) if self.rng.random() < 0.6 else data[8 : 8 + size]
            if which < 2 and self.rng.random() < 0.5:
                about = json.loads(data[8 : 8 + size])
                about["__metadata__"]["unseg"] = text_of(self.rng, json.loads(about["__metadata__"]["unseg"])).decode(
                    "utf-8", "replace"
                )
                header = json.dumps(about).encode()
            data = struct.pack("<Q", len(header)) + header + data[8 + size :]
        data = bent(self.rng, data) if which == 3 or self.rng.random() < 0.4 else data
        name = "x.pth" if which == 3 else "x.safetensors"
        Path(name).write_bytes(data)
        if which < 2:
            segmenter.load(name)
        elif which == 2:
            vit.load(vit.Backbone(name, None, None, None, None))
        else:
            weights.resnet_state(name)
        training.read_weights(name, "segmenter")

    def params(self) -> None:
        group = self.rng.choice(list(GROUPS))
        tree = {group: swapped(self.rng, self.params[group])} if self.rng.random() < 0.7 else {group: self.params[group]}
        text = yaml.safe_dump(tree).encode("utf-8", "replace")
        Path("params.yaml").write_bytes(bent(self.rng, text) if self.rng.random() < 0.4 else text)
        if self.rng.random() < 0.01:
            Path("params.yaml").write_bytes(b"[" * 50_000)
        params.group(group, GROUPS[group])

    def clusters_yaml(self) -> None:
        tree = {"clusters": dict(enumerate(swapped(self.rng, list(self.clusters["clusters"].values()))))}
        text = yaml.safe_dump(tree if self.rng.random() < 0.8 else swapped(self.rng, self.clusters)).encode("utf-8", "replace")
        Path("clusters.yaml").write_bytes(bent(self.rng, text) if self.rng.random() < 0.5 else text)
        read = naming.read("clusters.yaml", 3)
        naming.write("clusters.yaml", read)
        said = {k: entry for k, entry in read.entries.items() if entry != naming.ClusterEntry()}
        assert naming.read("clusters.yaml", 3).entries == said


KINDS: dict[str, Callable[[Fuzz], None]] = {
    "photo": Fuzz.photo, "archive": Fuzz.archive, "coco": Fuzz.coco, "instances": Fuzz.instances,
    "label_zip": Fuzz.label_zip, "weights": Fuzz.weights,
    "params": Fuzz.params, "clusters": Fuzz.clusters_yaml,
}  # fmt: skip


def run(inputs: int, seed: int) -> dict[str, list[str]]:
    """Try so many inputs in a new working folder; the faults of each kind, alike ones once."""
    faults: dict[str, list[str]] = {}
    state = {"what": "", "watched": True}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and state["watched"] and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, mode, flags = arguments
            writes = any(c in (mode or "") for c in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and not Path(os.fsdecode(path)).resolve().is_relative_to(Path.cwd()) and "/dev/" not in os.fsdecode(path):
                faults.setdefault(str(state["what"]), []).append(f"opened {os.fsdecode(path)} for writing")

    def late(*_: object) -> None:
        raise TooLong

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        signal.signal(signal.SIGPROF, late)
        sys.addaudithook(watch)
        try:
            fuzz = Fuzz(random.Random(seed))
            for number in range(inputs):
                fuzz.rng.seed(seed * 10**6 + number)
                state["what"] = what = list(KINDS)[number % len(KINDS)]
                faulthandler.dump_traceback_later(30 * LONGEST, exit=True)  # where no signal is heard, or something waits
                signal.setitimer(signal.ITIMER_PROF, LONGEST)
                try:
                    KINDS[what](fuzz)
                except InputError as error:
                    if "\n" in str(error) or not str(error):
                        faults.setdefault(what, []).append(f"input {number}: not one line: {error}")
                except TooLong:
                    faults.setdefault(what, []).append(f"input {number}: longer than {LONGEST} s")
                except Exception as error:
                    at = traceback.extract_tb(error.__traceback__)
                    own = next((f for f in reversed(at) if "unseg" in f.filename), at[-1])
                    said = f"{type(error).__name__} in {Path(own.filename).name}:{own.lineno}: {str(error)[:80]}"
                    if not any(said.split(":")[:2] == f.split(": ", 1)[1].split(":")[:2] for f in faults.get(what, [])):
                        faults.setdefault(what, []).append(f"input {number}: {said}")
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                for stray in ("photos/x.zip",):
                    Path(stray).unlink(missing_ok=True)
                if number % 1000 == 999:
                    print(f"{number + 1} inputs, {sum(map(len, faults.values()))} faults", file=sys.stderr, flush=True)
        finally:
            state["watched"] = False
            faulthandler.cancel_dump_traceback_later()
            os.chdir(here)
    return faults


if __name__ == "__main__":
    faulthandler.enable()
    inputs, seed = (int(w) for w in (*sys.argv[1:], *("20000", "0")[len(sys.argv) - 1 :]))
    found = run(inputs, seed)
    for kind, said in found.items():
        print(*(f"{kind}: {s}" for s in said), sep="\n")
    print(f"{inputs} inputs: {sum(map(len, found.values()))} faults")
    sys.exit(bool(found))
