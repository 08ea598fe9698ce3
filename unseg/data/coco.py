"""COCO's instances JSON (cocodataset.org/#format-data), checked as it is read: images, categories, segmentations.

Files without `annotations` (image_info_unlabeled2017.json) are read too.

Shapes: H rows, W columns.
"""

import json
import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from pycocotools import mask as coco_mask

from unseg.core import masks
from unseg.core.console import InputError
from unseg.core.masks import Mask
from unseg.core.storage import read_json

T = TypeVar("T")


class CocoImage(NamedTuple):
    id: int
    file_name: str  # relative to data.images, with forward slashes
    size: tuple[int, int]  # H, W


class Coco(NamedTuple):
    path: Path
    images: list[CocoImage]
    annotations: list[dict[str, Any]] | None  # None: the file has no such list. Only image_id is checked; see `compact`
    categories: dict[int, str]


def read(path: Path, folder: Path) -> Coco:
    """An instances JSON whose photographs are in `folder`.

    COCO's file names leave out the folder of a split: if `folder` has train2017/, the names in instances_train2017.json are
    names in it. Raises InputError for another format, a repeated id or file name, or an annotation of an unknown image.
    """
    content = read_json(path, compact)
    split = path.stem.rpartition("_")[2]
    subfolder = split if (folder / split).is_dir() else ""
    images = []
    for i, record in enumerate(field(content, "images", list, str(path))):
        where = f"{path}: images[{i}]"
        name = PurePosixPath(field(record, "file_name", str, where))
        if subfolder and name.parts[:1] != (subfolder,):
            name = subfolder / name
        size = field(record, "height", int, where), field(record, "width", int, where)
        images.append(CocoImage(field(record, "id", int, where), name.as_posix(), size))
    for key, values in (("id", [i.id for i in images]), ("file_name", [i.file_name for i in images])):
        if (duplicate := first_duplicate(values)) is not None:
            raise InputError(f"{path}: two images have the {key} {duplicate!r}; each needs a different one")
    annotations = field(content, "annotations", list, str(path)) if "annotations" in content else None
    ids = {i.id for i in images}
    for i, a in enumerate(annotations or []):
        if field(a, "image_id", int, f"{path}: annotations[{i}]") not in ids:
            raise InputError(f"{path}: annotation {a.get('id')} is of image {a['image_id']}, which the file does not list")
    categories: dict[int, str] = {}
    for i, c in enumerate(field(content, "categories", list, str(path)) if content.get("categories") else []):
        where = f"{path}: categories[{i}]"
        id, category = field(c, "id", int, where), field(c, "name", str, where)
        if categories.setdefault(id, category) != category:
            raise InputError(f"{path}: category id {id} is both {categories[id]} and {category}; each needs a different id")
    return Coco(path, images, annotations, categories)


def compact(content: dict[str, Any]) -> dict[str, Any]:
    """An annotation with the keys that are used, its segmentation as text: COCO's 860,000 would take 4 GiB otherwise."""
    if "image_id" not in content or "segmentation" not in content:
        return content
    used = {key: content[key] for key in ("id", "image_id", "category_id", "iscrowd") if key in content}
    return {**used, "segmentation": json.dumps(content["segmentation"], default=repr).encode()}


def field(content: Any, key: str, kind: type[T], where: str) -> T:
    """content[key]. Raises InputError if it is not of type kind."""
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {key} is {str(value)[:60]!r}; COCO's format has {kind.__name__} here")
    return value


def first_duplicate(values: list[Any]) -> Any | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def to_mask(segmentation: Any, size: tuple[int, int]) -> Mask:
    """Polygons, run lengths or compressed run lengths to a mask.

    pycocotools checks nothing, and reads memory beyond a bad input; here it gets checked input only. A polygon that covers no
    pixel's centre gives an empty mask. Raises ValueError if it is not a segmentation of an image of this size (H, W).
    """
    h, w = size
    if isinstance(segmentation, bytes):
        segmentation = json.loads(segmentation)
    if isinstance(segmentation, list):
        check_polygons(segmentation, size)
        return masks.from_rle(coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w)))
    if not isinstance(segmentation, dict):
        raise ValueError("it has no segmentation; boxes alone are no ground truth for masks")
    counts = segmentation.get("counts")
    if segmentation.get("size") != [h, w]:
        raise ValueError(f"its size is {segmentation.get('size')}, its image's {[h, w]} (rows, columns)")
    lengths = masks.run_lengths([counts])[0].tolist() if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != h * w:
        raise ValueError(f"its run lengths do not add up to {h} x {w} pixels")
    return masks.from_run_lengths(lengths, size)


def check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Raises ValueError for invalid polygons. Corners may lie outside the image, by one image size, as annotators draw them."""
    if not polygons or not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise ValueError("a segmentation is a list of polygons [x, y, x, y, x, y, ...] of at least three corners")
    for p in polygons:
        if not all(type(x) in (int, float) and math.isfinite(x) for x in p):
            raise ValueError("a corner of a polygon is not a number")
        for x, side in ((p[0::2], size[1]), (p[1::2], size[0])):
            if min(x) < -side or max(x) > 2 * side:
                raise ValueError(f"a polygon reaches from {min(x):g} to {max(x):g}, but the image has {side} pixels")
