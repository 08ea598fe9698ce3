"""Photographs whose pixels have a class, and a ViT's tokens of them: what CrOC's evaluations of backbones work on.

Stegmueller, Lebailly et al., arXiv:2303.13245; docs/spec/croc.md, section 9. Three kinds of sets:
    voc     lists of stems, JPEGImages/, SegmentationClass/ (or -Aug): 21 classes, background one of them.
    things  COCO's panoptic JSONs and the folders of their names beside them: 12 super-classes of things; stuff is void.
    stuff   COCO's stuff JSONs and the folders <name>_pixelmaps/ beside them: 15 super-classes of stuff; things are void.
COCO's photographs lie in the folder that ends the JSON's name: train2017/ for panoptic_train2017.json.

Shapes: S pixels a side of the square that a photograph becomes, D channels of a token, h x w tokens.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.storage import read_json
from unseg.data import coco, examination, photos, readers
from unseg.data.truth import VOC
from unseg.engine import batching, environment
from unseg.engine.precision import autocast
from unseg.models import vit

KINDS = ("voc", "things", "stuff")
PIXELS = 3_000_000  # of a batch


@dataclass(frozen=True)
class Set:
    """An item of the list `sets` in params.yaml."""

    kind: str  # voc | things | stuff
    root: str  # all paths are below it
    train: str  # voc: list of stems; things, stuff: JSON
    val: str
    share: float  # of train that the linear probe learns from

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"params.yaml: sets: kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if not 0 < self.share <= 1:
            raise InputError(f"params.yaml: sets: share is {self.share}; it must be above 0 and at most 1")


class Example(NamedTuple):
    photo: str  # path
    mask: str  # path of a PNG
    names: dict[int, int]  # value in the PNG to class; other values are void


def read(data: Set, listed: str) -> tuple[list[str], list[Example]]:
    """The names of the classes, and the examples of data.train or data.val in the order of their list.

    Raises:
        InputError: a list or JSON that cannot be used, or a file that is not there or leads out of data.root.
    """
    root = Path(data.root).resolve()
    classes, found = {"voc": read_voc, "things": read_things, "stuff": read_stuff}[data.kind](root, listed)
    for path in (p for e in found for p in e[:2]):
        if reason := examination.refuse(root, path):
            raise InputError(f"{data.root}/{path}: {reason}; {data.root}/{listed} names it")
    return classes, [Example(str(root / e.photo), str(root / e.mask), e.names) for e in found]


def read_voc(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    names = {c: c for c in range(len(VOC))}
    stems = readers.read_list(root / listed)
    return list(VOC), [Example(f"JPEGImages/{s}.jpg", f"{readers.mask_folder(root, s)}/{s}.png", names) for s in stems]


def read_things(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    content, folder = read_json(root / listed), PurePosixPath(listed)
    known = {c["id"]: c for c in columns(content, "categories", root / listed, "id", "supercategory", "isthing")}
    classes = sorted({c["supercategory"] for c in known.values() if c["isthing"]})
    found = []
    for a in columns(content, "annotations", root / listed, "file_name", "segments_info"):
        name, names = PurePosixPath(a["file_name"]), {}
        for segment in a["segments_info"]:
            category = known.get(segment["category_id"])
            if category is not None and category["isthing"]:
                names[int(segment["id"])] = classes.index(category["supercategory"])
        photo = PurePosixPath(split(folder)) / name.with_suffix(".jpg")
        found.append(Example(str(photo), str(folder.with_suffix("") / name), names))
    return classes, found


def read_stuff(root: Path, listed: str) -> tuple[list[str], list[Example]]:
    content, folder = read_json(root / listed), PurePosixPath(listed)
    categories = columns(content, "categories", root / listed, "id", "supercategory")
    stuff = [c for c in categories if c["supercategory"] != "other"]
    classes = sorted({c["supercategory"] for c in stuff})
    names = {int(c["id"]): classes.index(c["supercategory"]) for c in stuff}
    masks = folder.with_name(f"{folder.stem}_pixelmaps")
    found = []
    for image in columns(content, "images", root / listed, "file_name"):
        name = PurePosixPath(image["file_name"])
        found.append(Example(str(PurePosixPath(split(folder)) / name), str(masks / name.with_suffix(".png")), names))
    return classes, found


def split(listed: PurePosixPath) -> str:
    """annotations/stuff_val2017.json to val2017."""
    return listed.stem.rpartition("_")[2]


def columns(content: Any, key: str, path: Path, *wanted: str) -> list[dict[str, Any]]:
    """content[key], a list of records that have the wanted fields."""
    rows: list[dict[str, Any]] = coco.field(content, key, list, str(path))
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or (missing := [w for w in wanted if w not in row]):
            what = "is no record" if not isinstance(row, dict) else f"has no {missing[0]}"
            raise InputError(f"{path}: {key}[{i}] {what}; sets.kind must be the kind of this file")
    return rows


def mask_of(example: Example) -> np.ndarray:
    """[H, W] uint8: classes, and 255 where there is none.

    Raises:
        InputError: not a PNG of indices (palette or grey), or of RGB numbers r + 256 g + 65536 b as in panoptic masks.
    """
    try:
        with warnings.catch_warnings(), Pillow.open(example.mask, formats=["PNG"]) as mask:
            warnings.filterwarnings("ignore", module="PIL")
            mode, values = mask.mode, np.array(mask).astype(np.int64)
    except Exception as error:  # decoders of broken files raise anything
        raise InputError(f"{example.mask} cannot be read as a PNG ({error}); put a whole one there") from None
    if mode == "RGB":
        values = values @ np.array([1, 256, 65536])  # [H, W]
    elif mode not in ("L", "P"):
        raise InputError(f"{example.mask} has mode {mode}; a mask is a PNG of one index a pixel, or panoptic (RGB)")
    keys, where = np.unique(values, return_inverse=True)
    return np.array([example.names.get(int(k), IGNORE_LABEL) for k in keys], np.uint8)[where].reshape(values.shape)


def both(example: Example) -> tuple[Pillow.Image, Pillow.Image]:
    """Photograph and mask, of one size."""
    photo, mask = photos.open_rgb(example.photo), Pillow.fromarray(mask_of(example))
    if photo.size != mask.size:
        raise InputError(f"{example.mask} is {mask.size}, its photograph {photo.size} (columns, rows); make them agree")
    return photo, mask


def square_mask(mask: Pillow.Image, size: int) -> np.ndarray:
    """[S, S] uint8, nearest neighbour."""
    return np.array(mask.resize((size, size), Pillow.Resampling.NEAREST))


def thin(labels: np.ndarray, grid: int) -> np.ndarray:
    """[S, S] to [grid, grid]: of each cell the pixel at its upper left corner, as torch's `nearest` takes it."""
    at = np.arange(grid) * labels.shape[0] // grid
    return np.asarray(labels[at[:, None], at])


@torch.no_grad()
def tokens(model: VisionTransformer, x: Tensor, precision: str) -> Tensor:
    """Patch tokens after the final LayerNorm: [B, 3, S, S], normalised, to [B, D, h, w] float32."""
    with autocast(x.device, precision):
        found = vit.tokens(model, x)[:, 1:].float()  # [B, N, D]
    patch = model.patch_embed.patch_size[0]
    grid: Tensor = found.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))
    return grid


def every(model: VisionTransformer, examples: list[Example], size: int, precision: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Of each example, squeezed to S x S: the mask [S, S] uint8 and the tokens [D, h, w]."""
    device = environment.device()

    def load(example: Example) -> Tensor:
        return batching.to_tensor(photos.resize(both(example)[0], (size, size)))

    for batch, x in batching.batches_by_shape(examples, lambda _: (size, size), load, PIXELS):
        for example, found in zip(batch, tokens(model, x.to(device), precision), strict=True):
            yield square_mask(Pillow.fromarray(mask_of(example)), size), found


def check_size(key: str, size: int, patch: int, weights: str) -> None:
    if size % patch:
        raise InputError(f"params.yaml: {key}.size is {size}; it must be a multiple of the patch of {weights}, {patch}")
