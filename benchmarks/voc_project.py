"""A project in which the stages run one by one with other values of params.yaml, and a row of numbers for each. `voc.py` uses it.

The networks' results that several choices share are computed once.
"""

import contextlib
import importlib
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.demo import copy
from unseg.core import image_index, params, profiles, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord

VOC = "data/raw/VOC2012"
FACETS = ("keys", "queries", "values", "tokens")
Changes = dict[str, Any]


class Memo:
    """Results of a network that several choices share, and the seconds that those who only read them have saved."""

    def __init__(self) -> None:
        self.results: dict[Any, tuple[Any, float]] = {}
        self.saved = 0.0

    def get(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key in self.results:
            self.saved += self.results[key][1]
        else:
            start = time.perf_counter()
            result = compute()
            self.results[key] = result, time.perf_counter() - start
        return self.results[key][0]


@contextlib.contextmanager
def shared_networks(memo: Memo) -> Iterator[None]:
    """`facets.read` and a ViT student's tokens are computed once for equal pixels; all facets of a layer in one pass.

    Tokens are rounded to float16, as the student's training stores them.
    """
    import torch

    from unseg.models import facets
    from unseg.segmentation.vit_student import ViTStudent

    read, tokens = facets.read, ViTStudent.tokens

    def all_facets(model: Any, images: Any, layer: int) -> dict[str, Any]:
        steps = Memo()  # of this pass: each block runs once
        embed, run_block = facets.embed, facets.run_block
        with (
            mock.patch.object(facets, "embed", lambda m, x: steps.get("embed", lambda: embed(m, x))),
            mock.patch.object(facets, "run_block", lambda b, x, rope: steps.get((id(b), id(x)), lambda: run_block(b, x, rope))),
        ):
            found = {facet: read(model, images, facet, layer) for facet in FACETS}
        return {facet: x._replace(query=found["keys"].query, keys=found["keys"].keys) for facet, x in found.items()}

    def shared_read(model: Any, images: Any, facet: str = "keys", layer: int = -1) -> Any:
        layer %= len(model.blocks)
        if any(key[0] == "facets" and key[1] != layer for key in memo.results):
            memo.results.clear()  # the choices of one layer stand together; those of another would fill the memory
        return memo.get(("facets", layer, *pixel_key(images)), lambda: all_facets(model, images, layer))[facet]

    def shared_tokens(student: Any, x: Any) -> Any:
        weights = float(student.vit.blocks[-1].mlp.fc2.weight.double().sum())  # the last blocks may have been trained
        keys = [("tokens", weights, *pixel_key(one)) for one in x]
        if not all(key in memo.results for key in keys):
            start = time.perf_counter()
            computed = tokens(student, x).half()
            seconds = (time.perf_counter() - start) / len(x)
            memo.results |= {key: (one, seconds) for key, one in zip(keys, computed, strict=True)}
            return computed.to(x.dtype)
        return torch.stack([memo.get(key, list).to(x.dtype) for key in keys])

    with mock.patch.object(facets, "read", shared_read), mock.patch.object(ViTStudent, "tokens", shared_tokens):
        yield


def pixel_key(x: Any) -> tuple[Any, ...]:
    import hashlib

    return tuple(x.shape), hashlib.blake2b(x.contiguous().cpu().numpy().data, digest_size=16).digest()


class Project:
    """The copy of the working tree in which the stages run, and the finished rows."""

    def __init__(self, root: Path, weights: Path, data: Path, chain: Changes, quick: bool, photos: int) -> None:
        self.root, self.quick, self.photos = root, quick, photos
        self.chain = dict(chain)
        self.base: Changes = {}  # what the rows of a step vary, if not the chain
        for group in ("backbone", "embedder"):
            self.chain[f"{group}.weights"] = "models/vit.safetensors"
            self.chain |= {f"{group}.{key}": None for key in ("patch", "width", "depth", "heads")}
        about = {"weights": str(weights.resolve()), "data": str(data.resolve()), "quick": quick, "photos": photos}
        about |= {"chain": self.chain}
        kept = root / "voc.json"
        if kept.exists() and json.loads(kept.read_text()) != json.loads(json.dumps(about)):
            sys.exit(f"{kept}: this folder belongs to other options or to another version of voc.py; name another --into")
        if not kept.exists():
            root.mkdir(parents=True, exist_ok=True)
            copy(root, 0, [])
            link(root / "models/vit.safetensors", weights)
            self.link_data(data)
            storage.write_json(kept, about)
        file = root / "rows.jsonl"
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.memo = Memo()
        (root / "choices").mkdir(exist_ok=True)
        os.chdir(root)
        os.environ.setdefault("UNSEG_WORKERS", "0")
        self.set({})

    def link_data(self, data: Path) -> None:
        lists = self.root / VOC / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        for folder in ("JPEGImages", "SegmentationClass"):
            link(self.root / VOC / folder, data / folder)
        for name in ("train", "val"):
            names = (data / f"ImageSets/Segmentation/{name}.txt").read_text().split()
            (lists / f"{name}.txt").write_text("\n".join(image_index.evenly_spaced(names, 60) if self.quick else names) + "\n")

    def set(self, changes: Changes) -> None:
        """Write params.yaml: the profile voc_small, the chain's values, those of the step's base, and the changes."""
        file = Path("params.yaml")
        file.write_text(profiles.render("voc_small", self.chain | self.base | changes, ROOT / "profiles"), "utf-8")

    def stage(self, name: str, item: Any = None, file: str = "dvc.yaml", **others: str) -> None:
        """Run a stage of dvc.yaml by its command line, with some files replaced. Alarms end it after its output is written."""
        values = params.flatten(yaml.safe_load(Path("params.yaml").read_text()))
        values |= {f"item.{k}": x for k, x in item.items()} if isinstance(item, dict) else {"item": item}
        node = yaml.safe_load((ROOT / file).read_text())["stages"][name]
        cmd = re.sub(r"\$\{([\w.]+)\}", lambda m: str(values[m[1]]), node.get("do", node)["cmd"])
        words = shlex.split(cmd)
        first = next(i for i, word in enumerate(words) if word.startswith("stages."))
        options = dict(zip(words[first + 1 :: 2], words[first + 2 :: 2], strict=True))
        arguments = {key.removeprefix("--").replace("-", "_"): x for key, x in options.items()}
        importlib.import_module(words[first]).main(**(arguments | others))

    def row(self, step: str, changes: Changes, way: Callable[[], dict[str, Any]], name: str = "") -> None:
        """Compute the numbers of a row, unless it is finished; the error of a choice that cannot run is printed."""
        values = [f"{k}={storage.json_line(x)}" for k, x in changes.items() if "." in k]  # without lists of rounds
        name = " ".join(filter(None, [name, *values])).replace('"', "") or "chain"
        if any((r["step"], r["name"]) == (step, name) for r in self.rows):
            return
        record: dict[str, Any] = {"step": step, "name": name}
        try:
            self.set(changes)
            record |= {key: round(float(x), 5) for key, x in way().items()}
        except InputError as error:
            return print(f"{step} {name}: {error}", flush=True)
        except Exception:  # hours of other choices must not be lost
            print(f"{step} {name}: {traceback.format_exc()}", flush=True)
            return
        self.rows.append(record)
        with Path("rows.jsonl").open("a") as file:
            file.write(storage.json_line(record) + "\n")
        print(*(f"{k} {x}" for k, x in record.items()), flush=True)

    def timed(self, way: Callable[[], None], count: int) -> dict[str, float]:
        """Seconds an image of `way`, as if it had shared no network; whether an alarm ended it."""
        start, saved, alarm = time.perf_counter(), self.memo.saved, False
        try:
            way()
        except InputError as error:
            if ": collapse: " not in str(error):
                raise
            alarm = True
        return {"seconds": (time.perf_counter() - start + self.memo.saved - saved) / count, "alarm": float(alarm)}

    @property
    def index(self) -> list[ImageRecord]:
        return image_index.read_images("data/images.json")

    @property
    def train(self) -> list[ImageRecord]:
        return image_index.train_images("data/images.json")

    @property
    def val(self) -> list[ImageRecord]:
        return image_index.eval_images("data/images.json")


def link(path: Path, target: Path) -> None:
    if not target.exists():
        sys.exit(f"{target}: no such file or folder; name another by --data or --weights")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())
