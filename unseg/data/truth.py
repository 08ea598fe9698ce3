"""Convert the ground truth to data/truth.zip: label maps and instances of the photographs in the index.

Only evaluation and the report read it; no model may depend on it. Classes are numbered from 1 (0 background, 255 ignored)
in the order of the data set's ids; an instance's category_id is the value of its class in the label maps.

Shapes: H rows, W columns.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from unseg.core import masks
from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance, instance
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.storage import JsonLines, encode_png, json_line, to_json
from unseg.data import coco
from unseg.data.readers import Data, mask_folder

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Truth(NamedTuple):
    """The ground truth of an image. Instances have the id 0 until they are written."""

    image: ImageRecord
    semantic: np.ndarray  # [H, W] uint8: 0 background, 1..C, 255 ignored
    instances: list[Instance] | None  # None: the data set does not separate objects


def members(data: Data, index: list[ImageRecord]) -> Iterator[tuple[str, bytes]]:
    """The members of data/truth.zip. Raises InputError for an annotation that is unreadable or does not fit its photograph."""
    if data.kind == "folder":
        yield "classes.json", to_json({"classes": []}).encode()
        return
    names, truths = (list(VOC_CLASSES), voc_truths(data, index)) if data.kind == "voc" else read_coco(data, index)
    annotations: list[str] = []  # lines of JSON, which take a third of the memory of mappings
    images = []
    any_truth = False
    for truth in track(truths, "read ground truth", len(index)):
        any_truth = True
        yield f"semantic/{truth.image.file_name}.png", encode_png(truth.semantic)
        if truth.instances is not None:
            images.append(asdict(truth.image))
            for x in truth.instances:
                annotations.append(json_line(replace(x, id=len(annotations) + 1).to_coco()))
    if images:
        categories = [{"id": i, "name": name} for i, name in enumerate(names) if i]
        content = {"images": images, "annotations": JsonLines(annotations), "categories": categories}
        yield "instances.json", to_json(content).encode()
    yield "classes.json", to_json({"classes": names if any_truth else []}).encode()


def voc_truths(data: Data, index: list[ImageRecord]) -> Iterator[Truth]:
    """The truth of the images with a class mask; instances if there is an object mask, too."""
    root = Path(data.root)
    for image in index:
        name = PurePosixPath(image.file_name).with_suffix(".png")
        folder = root / mask_folder(root, str(name.with_suffix("")))
        semantic = read_index_map(folder, name, image)
        if semantic is None:
            continue
        unknown = np.setdiff1d(semantic, [*range(len(VOC_CLASSES)), IGNORE_LABEL])
        if unknown.size:
            raise InputError(f"{folder}/{name} has the value {unknown[0]}; VOC has 0 to 20, and 255 for void")
        objects = read_index_map(root / "SegmentationObject", name, image)
        yield Truth(image, semantic, None if objects is None else instances_of(image.id, semantic, objects))


def read_index_map(folder: Path, name: PurePosixPath, image: ImageRecord) -> np.ndarray | None:
    """A mask's indices (not its palette's colours) [H, W] uint8; None if there is no such file. Raises InputError."""
    path = folder / name
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} leads out of {folder}; put the mask itself there")
    try:
        with warnings.catch_warnings(), Pillow.open(path, formats=["PNG"]) as mask:
            warnings.filterwarnings("ignore", module="PIL")
            mode, size = mask.mode, mask.size[::-1]
            if size == image.size and mode in ("L", "P"):
                return np.array(mask, np.uint8)
    except Exception as error:  # decoders of broken files raise any error
        raise InputError(f"{path} cannot be read as a PNG ({error}); replace it, or remove it") from None
    if size != image.size:
        raise InputError(f"{path} is {size}, its photograph {image.size} (rows, columns); make them agree, or remove the mask")
    raise InputError(f"{path} has mode {mode}; a mask is a PNG with one index per pixel (palette or grey, 8 bits)")


def instances_of(image_id: int, semantic: np.ndarray, objects: np.ndarray) -> list[Instance]:
    """The instances of VOC's class mask and object mask, both [H, W] uint8.

    Each value of `objects` except 0 and 255 is an instance. Its class is the most frequent class of its pixels without background
    and void, on a tie the lower one. An object of background and void only is dropped.
    """
    instances = []
    for value in np.setdiff1d(objects, [0, IGNORE_LABEL]):
        mask = objects == value
        votes = np.bincount(semantic[mask], minlength=IGNORE_LABEL + 1)
        votes[[0, IGNORE_LABEL]] = 0
        if votes.any():
            instances.append(instance(0, image_id, int(votes.argmax()), masks.encode(mask)))
    return instances


def read_coco(data: Data, index: list[ImageRecord]) -> tuple[list[str], Iterator[Truth]]:
    """The classes, background first, and the truths. An image of both splits has the truth of data.val's file."""
    train = data.instances(str(data.train))
    val = data.instances(data.val) if data.val else train
    sources = [(train, ("train",)), (val, ("val", "both"))] if train != val else [(train, ("train", "val", "both"))]
    files = [(coco.read(file, Path(data.images)), splits) for file, splits in sources]
    first, categories = files[0][0].path, dict[int, str]()
    for content, _ in files:
        for id, name in content.categories.items():
            if categories.setdefault(id, name) != name:
                raise InputError(f"{content.path}: category {id} is {name}, in {first} {categories[id]}")
    if len(categories) >= IGNORE_LABEL:
        raise InputError(f"{first} has {len(categories)} categories; a label map holds {IGNORE_LABEL - 1}")
    labels = {id: i + 1 for i, id in enumerate(sorted(categories))}
    truths = (coco_truths(content, [i for i in index if i.split in splits], labels) for content, splits in files)
    return ["background", *(categories[id] for id in labels)], chain.from_iterable(truths)


def coco_truths(content: coco.Coco, images: list[ImageRecord], labels: dict[int, int]) -> Iterator[Truth]:
    """The truth of each image; none if the file has no list of annotations. labels: the class, 1..C, by COCO's category id."""
    if content.annotations is None:
        return
    ids = {r.file_name: r.id for r in content.images}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for a in content.annotations:
        annotations[a["image_id"]].append(a)
    for image in images:
        instances = []
        for a in annotations[ids[image.file_name]]:
            where = f"{content.path}: annotation {a.get('id')}"
            if type(a.get("category_id")) is not int or a["category_id"] not in labels:
                raise InputError(f"{where}: category_id {a.get('category_id')!r} is not among the categories")
            try:
                mask = coco.to_mask(a.get("segmentation"), image.size)
            except ValueError as error:
                raise InputError(f"{where} of {image.file_name}: {error}") from None
            instances.append(Instance(0, image.id, labels[a["category_id"]], mask, mask.bbox, bool(a.get("iscrowd", 0))))
        yield Truth(image, paint(image.size, instances), instances)


def paint(size: tuple[int, int], instances: list[Instance]) -> np.ndarray:
    """Paint a label map [H, W] uint8, larger instances first, so that smaller ones stay visible; crowds get 255."""
    semantic = np.zeros(size, np.uint8)
    for x in sorted(instances, key=lambda x: -x.mask.area):
        semantic[x.mask.decode()] = IGNORE_LABEL if x.iscrowd else x.category_id
    return semantic
