"""Photographs with a class for each pixel, and a ViT's tokens of them: the input of CrOC's evaluations of backbones.

Stegmueller, Lebailly et al., arXiv:2303.13245; docs/spec/croc.md, section 9. There are three kinds of sets:
    voc     lists of stems, JPEGImages/, SegmentationClass/ (or -Aug): 21 classes, one of them background.
    things  COCO's panoptic JSONs and the folders of the same names beside them: 12 super-classes of things; stuff is void.
    stuff   COCO's stuff JSONs and the folders <name>_pixelmaps/ beside them: 15 super-classes of stuff; things are void.
COCO's photographs are in the folder that ends the JSON's name: train2017/ for panoptic_train2017.json.

Shapes: S pixels a side of the square that a photograph is resized to, D channels of a token, h x w tokens.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from unseg.core import params
from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.params import PositiveFraction
from unseg.core.storage import read_json
from unseg.data import coco, examination, photos, readers
from unseg.data.truth import VOC_CLASSES
from unseg.engine import batching, environment
from unseg.engine.precision import autocast
from unseg.models import vit
from unseg.models.vit import ViT
from unseg.models.weights import RANDOM_INIT

PIXELS = 3_000_000  # of a batch


@dataclass(frozen=True)
class Set:
    """An item of the list `sets` in params.yaml."""

    kind: Literal["voc", "things", "stuff"]
    root: str  # all paths are below it
    train: str  # voc: list of stems; things, stuff: JSON
    val: str
    fraction: PositiveFraction  # of train that the linear probe learns from


class Example(NamedTuple):
    photo: str  # path
    mask: str  # path of a PNG
    classes: dict[int, int]  # value in the PNG to class; other values are void


def read_set(kind: str, root: str, train: str, val: str, fraction: float) -> Set:
    """A set by the words of a stage's command, in which train and val start with root."""
    train, val = (path.removeprefix(f"{root}/") for path in (train, val))
    checked: Set = params.check(
        "sets", Set, {"kind": kind, "root": root, "train": train, "val": val, "fraction": fraction}, params.FILE
    )
    return checked


def load_backbone(weights: str, group: str, size: int) -> ViT:
    """The ViT of a file; for random weights, of the shape that `backbone` in params.yaml has.

    Raises:
        InputError: size, of a group of params.yaml, is not a multiple of the patch.
    """
    keys = ("patch", "width", "depth", "heads")
    random = weights == RANDOM_INIT
    model = vit.load(vit.Backbone(weights, **{key: params.value(f"backbone.{key}", int) if random else None for key in keys}))
    if size % (patch := vit.patch_size(model)):
        raise InputError(f"params.yaml: {group}.size is {size}; it must be a multiple of the patch of {weights}, {patch}")
    return model


def read_examples(data: Set, listed: str) -> tuple[list[str], list[Example]]:
    """The names of the classes, and the examples of data.train or data.val in the order of their list.

    Raises:
        InputError: an unusable list or JSON, or a file that is missing or outside of data.root.
    """
    root = Path(data.root).resolve()
    classes, examples = {"voc": read_voc, "things": read_things, "stuff": read_stuff}[data.kind](root, listed)
    for path in (p for e in examples for p in e[:2]):
        if reason := examination.refuse(root, path):
            raise InputError(f"{data.root}/{path}: {reason}; {data.root}/{listed} names it")
    return classes, [Example(str(root / e.photo), str(root / e.mask), e.classes) for e in examples]


def read_voc(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    classes = {c: c for c in range(len(VOC_CLASSES))}
    stems = readers.read_list(root / listed)
    return list(VOC_CLASSES), [Example(f"JPEGImages/{s}.jpg", f"{readers.mask_folder(root, s)}/{s}.png", classes) for s in stems]


def read_things(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    content, path = read_json(root / listed), PurePosixPath(listed)
    categories = read_records(content, "categories", root / listed, "id", "supercategory", "isthing")
    names = sorted({c["supercategory"] for c in categories if c["isthing"]})
    class_of = {c["id"]: names.index(c["supercategory"]) for c in categories if c["isthing"]}
    examples = []
    for a in read_records(content, "annotations", root / listed, "file_name", "segments_info"):
        file = PurePosixPath(a["file_name"])
        classes = {int(s["id"]): class_of[s["category_id"]] for s in a["segments_info"] if s["category_id"] in class_of}
        photo = PurePosixPath(split_name(path)) / file.with_suffix(".jpg")
        examples.append(Example(str(photo), str(path.with_suffix("") / file), classes))
    return names, examples


def read_stuff(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    content, path = read_json(root / listed), PurePosixPath(listed)
    categories = read_records(content, "categories", root / listed, "id", "supercategory")
    stuff = [c for c in categories if c["supercategory"] != "other"]
    names = sorted({c["supercategory"] for c in stuff})
    classes = {int(c["id"]): names.index(c["supercategory"]) for c in stuff}
    masks = path.with_name(f"{path.stem}_pixelmaps")
    files = [PurePosixPath(i["file_name"]) for i in read_records(content, "images", root / listed, "file_name")]
    return names, [Example(str(PurePosixPath(split_name(path)) / f), str(masks / f.with_suffix(".png")), classes) for f in files]


def split_name(listed: PurePosixPath) -> str:
    """annotations/stuff_val2017.json to val2017."""
    return listed.stem.rpartition("_")[2]


def read_records(content: Any, key: str, path: Path, *fields: str) -> list[dict[str, Any]]:
    """content[key], a list of records that have these fields."""
    records: list[dict[str, Any]] = coco.field(content, key, list, str(path))
    for i, record in enumerate(records):
        if not isinstance(record, dict) or (missing := [f for f in fields if f not in record]):
            problem = "is no record" if not isinstance(record, dict) else f"has no {missing[0]}"
            raise InputError(f"{path}: {key}[{i}] {problem}; sets.kind must be the kind of this file")
    return records


def read_png(path: str | Path, modes: tuple[str, ...]) -> tuple[str, np.ndarray]:
    """The mode of a mask, one of the modes, and its values [H, W] or [H, W, 3]. Raises InputError for other files."""
    try:
        with warnings.catch_warnings(), Pillow.open(path, formats=["PNG"]) as file:
            warnings.filterwarnings("ignore", module="PIL")
            mode, values = file.mode, np.array(file)
    except Exception as error:  # decoders of broken files raise anything
        raise InputError(f"{path} cannot be read as a PNG ({error}); put a whole one there") from None
    if mode not in modes:
        raise InputError(f"{path} has mode {mode}; a mask is a PNG with an index a pixel, of mode {' or '.join(modes)}")
    return mode, values


def read_mask(example: Example) -> np.ndarray:
    """[H, W] uint8: classes, and 255 for void; of a PNG of indices, or of RGB numbers r + 256 g + 65536 b (panoptic)."""
    mode, values = read_png(example.mask, ("L", "P", "RGB"))
    values = values.astype(np.int64) @ np.array([1, 256, 65536]) if mode == "RGB" else values  # [H, W]
    keys, inverse = np.unique(values, return_inverse=True)
    return np.array([example.classes.get(int(k), IGNORE_LABEL) for k in keys], np.uint8)[inverse].reshape(values.shape)


def read_pair(example: Example) -> tuple[Pillow.Image, Pillow.Image]:
    """Photograph and mask, of one size."""
    photo, mask = photos.open_rgb(example.photo), Pillow.fromarray(read_mask(example))
    if photo.size != mask.size:
        raise InputError(f"{example.mask} is {mask.size}, its photograph {photo.size} (columns, rows); make them agree")
    return photo, mask


def subsample(labels: np.ndarray, grid: int) -> np.ndarray:
    """[..., S, S] to [..., grid, grid]: of each cell the pixel at its upper left corner, as torch's `nearest`."""
    indices = np.arange(grid) * labels.shape[-1] // grid
    return np.asarray(labels[..., indices[:, None], indices])


@torch.no_grad()
def extract_tokens(model: ViT, x: Tensor, precision: str) -> Tensor:
    """Patch tokens after the final LayerNorm: [B, 3, S, S], normalised, to [B, D, h, w] float32."""
    with autocast(x.device, precision):
        tokens = vit.tokens(model, x)[:, model.num_prefix_tokens :].float()  # [B, N, D]
    patch = vit.patch_size(model)
    grid: Tensor = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))
    return grid


def masks_and_tokens(model: ViT, examples: list[Example], size: int, precision: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The mask [S, S] uint8 (nearest neighbour) and the tokens [D, h, w] of each example, resized to S x S."""
    device, (mean, std) = environment.device(), vit.normalisation(model)

    def load(example: Example) -> Tensor:
        return batching.to_tensor(photos.resize(read_pair(example)[0], (size, size)), mean, std)

    for batch, x in batching.batches_by_shape(examples, lambda _: (size, size), load, PIXELS):
        for example, tokens in zip(batch, extract_tokens(model, x.to(device), precision), strict=True):
            mask = Pillow.fromarray(read_mask(example)).resize((size, size), Pillow.Resampling.NEAREST)
            yield np.array(mask), tokens
