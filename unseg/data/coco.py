"""COCO's instances JSON, read with suspicion: images, categories, and segmentations of every kind as run lengths.

Form: cocodataset.org/#format-data. Files without `annotations` (image_info_unlabeled2017.json) are read too.

Shapes: H rows, W columns.
"""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from pycocotools import mask as coco_mask

from unseg.core.console import InputError
from unseg.core.rle import Rle, pack, run_lengths
from unseg.core.storage import read_json

T = TypeVar("T")


class CocoImage(NamedTuple):
    """What the JSON says of a photograph."""

    id: int
    file_name: str  # relative to data.images, with forward slashes
    size: tuple[int, int]  # H, W


class Coco(NamedTuple):
    path: Path
    images: list[CocoImage]
    annotations: list[dict[str, Any]] | None  # None: the file has no such list; image_id is checked, no more; `packed`
    categories: dict[int, str]


def read(path: Path, folder: Path) -> Coco:
    """An instances JSON whose photographs lie in `folder`.

    COCO's own files leave out the folder of a split: where `folder` holds train2017/, the names in
    instances_train2017.json are taken to lie in it.

    Raises:
        InputError: not such a file, an id or a file name given twice, an annotation of an unknown image.
    """
    content = read_json(path, packed)
    split = path.stem.rpartition("_")[2]
    inner = split if (folder / split).is_dir() else ""
    images = [record(r, f"{path}: images[{i}]", inner) for i, r in enumerate(field(content, "images", list, str(path)))]
    for what, given in (("id", [i.id for i in images]), ("file_name", [i.file_name for i in images])):
        if (twice := first_twice(given)) is not None:
            raise InputError(f"{path}: {what} {twice!r} is given to two images; each needs its own")
    annotations = field(content, "annotations", list, str(path)) if "annotations" in content else None
    known = {i.id for i in images}
    for i, a in enumerate(annotations or []):
        if field(a, "image_id", int, f"{path}: annotations[{i}]") not in known:
            raise InputError(f"{path}: annotation {a.get('id')} is of image {a['image_id']}, which the file does not list")
    categories: dict[int, str] = {}
    listed = content.get("categories") or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: categories is {str(listed)[:60]!r}; COCO's form has list here")
    for i, c in enumerate(listed):
        where = f"{path}: categories[{i}]"
        id, name = field(c, "id", int, where), field(c, "name", str, where)
        if categories.setdefault(id, name) != name:
            raise InputError(f"{path}: category id {id} is both {categories[id]} and {name}; each needs its own")
    return Coco(path, images, annotations, categories)


def packed(content: dict[str, Any]) -> dict[str, Any]:
    """An annotation with what is needed of it, its segmentation as text: COCO's 860,000 would else take 4 GiB."""
    if "image_id" not in content or "segmentation" not in content:
        return content
    kept = {key: content[key] for key in ("id", "image_id", "category_id", "iscrowd") if key in content}
    return {**kept, "segmentation": json.dumps(content["segmentation"], default=repr).encode()}


def record(content: Any, where: str, inner: str) -> CocoImage:
    name = PurePosixPath(field(content, "file_name", str, where))
    if inner and name.parts[:1] != (inner,):
        name = inner / name
    size = field(content, "height", int, where), field(content, "width", int, where)
    return CocoImage(field(content, "id", int, where), name.as_posix(), size)


def field(content: Any, key: str, kind: type[T], where: str) -> T:
    """content[key], which must be of type kind."""
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {key} is {str(value)[:60]!r}; COCO's form has {kind.__name__} here")
    return value


def first_twice(values: list[Any]) -> Any | None:
    seen = set()
    for v in values:
        if v in seen:
            return v
        seen.add(v)
    return None


def to_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    """Polygons, run lengths or compressed run lengths to compressed ones.

    A polygon that covers no pixel's centre gives an empty mask.

    Args:
        segmentation: as in the file, or as `packed` leaves it.

    Raises:
        ValueError: not a segmentation of an image of that size.
    """
    h, w = size
    if isinstance(segmentation, bytes):
        segmentation = json.loads(segmentation)
    if isinstance(segmentation, list):
        check_polygons(segmentation, size)
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
        return {"size": [h, w], "counts": rle["counts"].decode()}
    if not isinstance(segmentation, dict):
        raise ValueError("it has no segmentation; boxes alone are no ground truth for masks")
    counts = segmentation.get("counts")
    if segmentation.get("size") != [h, w]:
        raise ValueError(f"its size is {segmentation.get('size')}, its image's {[h, w]} (rows, columns)")
    lengths = run_lengths([counts])[0].tolist() if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths) or sum(lengths) != h * w:
        raise ValueError(f"its run lengths do not add up to {h} x {w} pixels")
    return pack(lengths, size)


def check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """pycocotools takes four numbers for a box and anything else for what it finds in memory: look first.

    Corners may lie outside the image, as annotators' do, by one image size at the most.
    """
    if not polygons or not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise ValueError("a segmentation is a list of polygons [x, y, x, y, x, y, ...] of three corners at least")
    for p in polygons:
        if not all(type(x) in (int, float) and math.isfinite(x) for x in p):
            raise ValueError("a corner of a polygon is not a number")
        for x, side in ((p[0::2], size[1]), (p[1::2], size[0])):
            if min(x) < -side or max(x) > 2 * side:
                raise ValueError(f"a polygon reaches from {min(x):g} to {max(x):g} where the image has {side} pixels")
