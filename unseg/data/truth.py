"""Ground truth into data/truth.zip: label maps and instances of the photographs in the index.

Read by evaluation and by the report; nothing that learns may have it upstream. Classes are numbered from 1
(0 background, 255 void), whatever ids the data set gives them, and an instance's category_id is the value
that its class has in the label maps.

Shapes: H rows, W columns.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.rle import Rle, coco_annotation, decode, encode, group_by_image
from unseg.core.storage import JsonLines, encode_png, json_line, to_json
from unseg.data import coco
from unseg.data.readers import Data, mask_folder

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Instance(NamedTuple):
    label: int  # class, 1..C
    rle: Rle
    crowd: bool = False  # a region of many, which no single mask can match


class Truth(NamedTuple):
    image: ImageRecord
    semantic: np.ndarray  # [H, W] uint8: 0 background, 1..C, 255 void
    instances: list[Instance] | None  # None: objects were not told apart


def members(data: Data, index: list[ImageRecord]) -> Iterator[tuple[str, bytes]]:
    """The members of data/truth.zip, an image at a time.

    Raises:
        InputError: an annotation that cannot be read or does not fit its photograph.
    """
    if data.kind == "folder":
        yield "classes.json", to_json({"classes": []}).encode()
        return
    names, truths = (list(VOC), voc(data, index)) if data.kind == "voc" else from_coco(data, index)
    annotations: list[str] = []  # lines of JSON: of very many objects, a third of what they take as mappings
    described = []
    any_truth = False
    for image, semantic, instances in track(truths, "read ground truth", len(index)):
        any_truth = True
        yield f"semantic/{image.file_name}.png", encode_png(semantic)
        if instances is not None:
            described.append(asdict(image))
            for label, rle, crowd in instances:
                a = coco_annotation(len(annotations) + 1, image.id, label, rle)
                annotations.append(json_line({**a, "iscrowd": int(crowd)}))
    if described:
        categories = [{"id": i, "name": name} for i, name in enumerate(names) if i]
        content = {"images": described, "annotations": JsonLines(annotations), "categories": categories}
        yield "instances.json", to_json(content).encode()
    yield "classes.json", to_json({"classes": names if any_truth else []}).encode()


def voc(data: Data, index: list[ImageRecord]) -> Iterator[Truth]:
    """Truth of those images that have a class mask; instances of those that have an object mask too."""
    for image in index:
        name = PurePosixPath(image.file_name).with_suffix(".png")
        folder = Path(data.root) / mask_folder(Path(data.root), str(name.with_suffix("")))
        semantic = index_map(folder, name, image)
        if semantic is None:
            continue
        strange = np.setdiff1d(semantic, [*range(len(VOC)), IGNORE_LABEL])
        if strange.size:
            raise InputError(f"{folder}/{name} has the value {strange[0]}; VOC has 0 to 20, and 255 for void")
        objects = index_map(Path(data.root) / "SegmentationObject", name, image)
        yield Truth(image, semantic, None if objects is None else instances_of(semantic, objects))


def index_map(folder: Path, name: PurePosixPath, image: ImageRecord) -> np.ndarray | None:
    """A mask's indices (a palette's, not its colours) [H, W] uint8; None where there is no such file.

    Raises:
        InputError: not a palette or grey 8-bit PNG of the image's size, or a file outside of `folder`.
    """
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
    except Exception as error:  # decoders of broken files raise anything
        raise InputError(f"{path} cannot be read as a PNG ({error}); put a whole one there, or none") from None
    if size != image.size:
        raise InputError(f"{path} is {size}, its photograph {image.size} (rows, columns); make them agree, or remove the mask")
    raise InputError(f"{path} has mode {mode}; a mask is a PNG of one index a pixel (palette or grey, 8 bits)")


def instances_of(semantic: np.ndarray, objects: np.ndarray) -> list[Instance]:
    """Each value of objects but 0 and 255 is an instance, of the class that most of its pixels have.

    Void and background do not vote; where they are all there is, it is no instance. Of classes that tie,
    the first.
    """
    found = []
    for value in np.setdiff1d(objects, [0, IGNORE_LABEL]):
        mask = objects == value
        votes = np.bincount(semantic[mask], minlength=IGNORE_LABEL + 1)
        votes[[0, IGNORE_LABEL]] = 0
        if votes.any():
            found.append(Instance(int(votes.argmax()), encode(mask)))
    return found


def from_coco(data: Data, index: list[ImageRecord]) -> tuple[list[str], Iterator[Truth]]:
    """The names of the classes, background first, and the truths.

    An image in both splits has the truth of data.val's file.
    """
    train = data.instances(str(data.train))
    val = data.instances(data.val) if data.val else train
    files = [(coco.read(file, Path(data.images)), split) for file, split in sources(train, val)]
    categories: dict[int, str] = {}
    for content, _ in files:
        for id, name in content.categories.items():
            if categories.setdefault(id, name) != name:
                raise InputError(f"{content.path}: category {id} is {name}, in {files[0][0].path} {categories[id]}")
    if len(categories) >= IGNORE_LABEL:
        raise InputError(f"{files[0][0].path} has {len(categories)} categories; a label map holds {IGNORE_LABEL - 1}")
    labels = {id: i + 1 for i, id in enumerate(sorted(categories))}

    def truths() -> Iterator[Truth]:
        for content, split in files:
            if content.annotations is not None:
                yield from coco_truths(content, [i for i in index if i.split in split], labels)

    return ["background", *(categories[id] for id in sorted(categories))], truths()


def sources(train: Path, val: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """The JSONs, and the splits whose truth each holds."""
    both = [(train, ("train",)), (val, ("val", "both"))]
    return both if train != val else [(train, ("train", "val", "both"))]


def coco_truths(content: coco.Coco, images: list[ImageRecord], labels: dict[int, int]) -> Iterator[Truth]:
    ids = {r.file_name: r.id for r in content.images}
    annotations = group_by_image(content.annotations or [])
    for image in images:
        instances = []
        for a in annotations.get(ids[image.file_name], []):
            where = f"{content.path}: annotation {a.get('id')}"
            if type(a.get("category_id")) is not int or a["category_id"] not in labels:
                raise InputError(f"{where}: category_id {a.get('category_id')!r} is not among the categories")
            try:
                rle = coco.to_rle(a.get("segmentation"), image.size)
            except ValueError as error:
                raise InputError(f"{where} of {image.file_name}: {error}") from None
            instances.append(Instance(labels[a["category_id"]], rle, bool(a.get("iscrowd", 0))))
        yield Truth(image, paint(image.size, instances), instances)


def paint(size: tuple[int, int], instances: list[Instance]) -> np.ndarray:
    """A label map [H, W] uint8: the larger first, so that the smaller stay visible; crowds are void."""
    semantic = np.zeros(size, np.uint8)
    for label, rle, crowd in sorted(instances, key=lambda i: -int(coco_mask.area(i.rle))):
        semantic[decode(rle)] = IGNORE_LABEL if crowd else label
    return semantic
