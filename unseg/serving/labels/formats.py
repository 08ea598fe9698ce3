"""Writers of label maps and detections for annotation tools and trainers; docs/labels.md says what each keeps and loses.

Each writer gets an empty folder, the source and the photographs' labels in order, and returns sentences for the user.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from unseg.core import storage
from unseg.core.console import InputError
from unseg.core.instances import instance
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.storage import JsonLines, json_line, write_json
from unseg.report import overlay
from unseg.serving.labels import label_studio
from unseg.serving.labels.polygons import pixel_polygons
from unseg.serving.labels.source import Labelled, LabelSource, Photographs, hex_colour, label_masks, present, title

Writer = Callable[[Path, LabelSource, Photographs], list[str]]
OBJECTS = 254  # that SegmentationObject can number; 255 is void
SEMANTIC, INSTANCES = "semantic.json", "instances.json"


def export(out: Path, format: str, source: LabelSource, photographs: Photographs) -> list[str]:
    """Write a new folder by the writer of a format; after an error nothing is left. Returns sentences for the user.

    Raises InputError if `out` is not new or empty, or if the format cannot hold the source's names.
    """
    check(format, source)
    with new_folder(out) as part:
        return WRITERS[format](part, source, photographs)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; rename it to `out` after the block, or remove it after an exception.

    Raises InputError if `out` is there and not an empty folder.
    """
    check_empty(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(out)  # an empty folder may be there
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_empty(out: Path) -> None:
    """Raises InputError if the path is there and not an empty folder."""
    if not out.name or out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} exists already; give a new or an empty folder")


def check(format: str, source: LabelSource) -> None:
    """Raises InputError for what a format cannot tell apart: photographs by their stems, labels by their colours."""
    if format in ("voc", "cvat", "yolo-seg"):
        stems: dict[str, str] = {}
        for i in source.images:
            if (first := stems.setdefault(stem(i.file_name), i.file_name)) != i.file_name:
                raise InputError(f"{first} and {i.file_name} would have one file in the format {format}; rename one")
    if format in ("voc", "cvat"):
        colours: dict[str, str] = {"#000000": source.names[0], "#ffffff": title(source, IGNORE_LABEL)}
        for label, name in list(source.names.items())[1:]:
            if any(c in name for c in ":\r\n"):
                raise InputError(f"the name {name!r} cannot be written in the format {format}; rename it in clusters.yaml")
            if (first := colours.setdefault(hex_colour(source.colours[label]), name)) != name:
                raise InputError(f"{first} and {name} have one colour, which the format {format} needs to differ; "
                                 "change one in clusters.yaml")  # fmt: skip


def stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# ---- COCO


class Coco:
    """Annotations of photographs as lines of JSON: a mask of each label, or a mask of each detection."""

    def __init__(self, source: LabelSource) -> None:
        self.source = source
        self.images: list[str] = []
        self.semantic: list[str] = []
        self.instances: list[str] = []
        self.has_void = False

    def add(self, p: Labelled) -> None:
        i = p.image
        self.images.append(json_line({"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width}))
        for k, mask in label_masks(p):
            record = instance(len(self.semantic) + 1, i.id, k, mask).to_coco()
            self.semantic.append(json_line(record | ({"score": p.scores[k]} if k in p.scores else {})))
            self.has_void |= k == IGNORE_LABEL
        for d in p.detections:
            record = instance(len(self.instances) + 1, i.id, d.category_id, d.mask).to_coco()
            self.instances.append(json_line(record | {"score": d.score}))

    def content(self, annotations: list[str], void: bool) -> dict[str, Any]:
        labels = [*list(self.source.names)[1:], *([IGNORE_LABEL] if void else [])]
        categories = [{"id": k, "name": title(self.source, k), "color": hex_colour(self.source.colours[k])} for k in labels]
        return {"images": JsonLines(self.images), "categories": categories, "annotations": JsonLines(annotations)}

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield SEMANTIC, self.content(self.semantic, self.has_void)
        if self.source.detections is not None:
            yield INSTANCES, self.content(self.instances, False)


def write_coco(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """semantic.json: a mask of each label; instances.json: the detections."""
    coco = Coco(source)
    for p in photographs:
        coco.add(p)
    for name, content in coco.files():
        write_json(out / name, content)
    return [f"{SEMANTIC}: {len(coco.semantic)} masks of labels; {INSTANCES}: {len(coco.instances)} detections"]


# ---- PNG


def write_png(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """labels/NAME.png, values as in the label map; classes.tsv: value, name, colour."""
    for p in photographs:
        path = out / f"labels/{p.image.file_name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        overlay.palette_image(p.labels, source.colours).save(path, "PNG")
    rows = [(k, title(source, k), hex_colour(source.colours[k])) for k in [*source.names, IGNORE_LABEL]]
    text = "".join(f"{k}\t{' '.join(name.split())}\t{colour}\n" for k, name, colour in rows)
    (out / "classes.tsv").write_text(f"value\tname\tcolour\n{text}", "utf-8")
    return ["a label map has no place for detections and confidence"]


# ---- YOLO


def write_yolo(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """labels/NAME.txt: a polygon for each part of a detection or, without detections, of a label; data.yaml."""
    classes = {k: c for c, k in enumerate(list(source.names)[1:])}
    count, holes, split = 0, 0, 0
    for p in photographs:
        objects = [(d.category_id, d.mask) for d in p.detections] if source.detections is not None else label_masks(p)
        lines = []
        for k, mask in objects:
            if k == IGNORE_LABEL:
                continue
            parts = pixel_polygons(mask.decode())
            holes += sum(n for _, n in parts)
            split += len(parts) > 1
            for points, _ in parts:
                scaled = (points + 0.25) / (p.image.width, p.image.height)  # rounded and cut off, a reader gets the pixel
                lines.append(" ".join([str(classes[k]), *(f"{x:.7f}" for x in scaled.ravel())]))
        count += len(lines)
        write_file(out / f"labels/{stem(p.image.file_name)}.txt", "".join(f"{line}\n" for line in lines).encode())
    names = {c: source.names[k] for k, c in classes.items()}
    text = yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": names}, sort_keys=False, allow_unicode=True)
    (out / "data.yaml").write_text(text, "utf-8")
    what = "detections" if source.detections is not None else "labels"
    return [
        f"{count} polygons of {what}; {holes} holes are joined to their outlines by a bridge, {split} objects of several parts "
        "became one object a part; void pixels and confidence are left out",
        "put the photographs, or a link to them, in its folder images",
    ]


# ---- VOC and CVAT


def voc_colours() -> np.ndarray:
    """[256, 3] uint8: PASCAL VOC's colours, in which tools expect the numbers of objects."""
    index, table = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return table


def number_objects(p: Labelled) -> np.ndarray:
    """[H, W] uint8, as SegmentationObject: 0 background, 255 void, else an object.

    A pixel belongs to the best detection of its label that covers it. The other pixels of a label are one more object.
    """
    objects = np.zeros_like(p.labels)
    objects[p.labels == IGNORE_LABEL] = IGNORE_LABEL
    rest = [k for k in present(p.labels) if k != IGNORE_LABEL]
    number = 0
    for d in p.detections[: OBJECTS - len(rest)]:
        own = d.mask.decode() & (p.labels == d.category_id) & (objects == 0)
        if own.any():
            number += 1
            objects[own] = number
    for k in rest:
        left = (p.labels == k) & (objects == 0)
        if left.any():
            number += 1
            objects[left] = number
    return objects


class Voc:
    """The files of PASCAL VOC's layout, as path and bytes."""

    def __init__(self, source: LabelSource) -> None:
        self.source, self.palette = source, source.colours.copy()
        self.palette[0] = 0
        self.stems: list[str] = []
        self.has_void = False

    def photograph(self, p: Labelled) -> Iterator[tuple[str, bytes]]:
        name = stem(p.image.file_name)
        self.stems.append(name)
        self.has_void |= bool((p.labels == IGNORE_LABEL).any())
        for folder, values, palette in (
            ("SegmentationClass", p.labels, self.palette),
            ("SegmentationObject", number_objects(p), voc_colours()),
        ):
            yield f"{folder}/{name}.png", palette_png(values, palette)

    def listings(self) -> Iterator[tuple[str, bytes]]:
        labels = [*self.source.names, *([IGNORE_LABEL] if self.has_void else [])]
        rows = [f"{title(self.source, k)}:{','.join(map(str, self.palette[k].tolist()))}::" for k in labels]
        yield "labelmap.txt", "".join(f"{row}\n" for row in rows).encode()
        yield "ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in self.stems).encode()


def palette_png(labels: np.ndarray, table: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    overlay.palette_image(labels, table).save(buffer, "PNG")
    return buffer.getvalue()


def voc_xml(p: Labelled, source: LabelSource) -> bytes:
    """Annotations/NAME.xml: the boxes of the detections; corners are pixels, counted from 1."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = p.image.file_name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", p.image.width), ("height", p.image.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for d in p.detections:
        x, y, w, h = d.mask.bbox
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = source.names[d.category_id]
        box = ElementTree.SubElement(node, "bndbox")
        for key, pixel in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
            ElementTree.SubElement(box, key).text = str(int(pixel))
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, "utf-8")
    return xml


def write_voc(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """SegmentationClass, SegmentationObject, labelmap.txt, ImageSets, and the boxes of detections in Annotations."""
    voc = Voc(source)
    for p in photographs:
        for name, content in voc.photograph(p):
            write_file(out / name, content)
        if source.detections is not None:
            write_file(out / f"Annotations/{stem(p.image.file_name)}.xml", voc_xml(p, source))
    for name, content in voc.listings():
        write_file(out / name, content)
    return ["SegmentationObject has the detections only where the label map agrees with them; confidence is left out"]


def write_cvat(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """Archives to upload as annotations of a task: masks.zip (Segmentation mask 1.1), semantic.zip, instances.zip (COCO 1.0)."""
    voc, coco = Voc(source), Coco(source)

    def members() -> Iterator[tuple[str, bytes]]:
        for p in photographs:
            coco.add(p)
            yield from voc.photograph(p)
        yield from voc.listings()

    storage.write_zip(out / "masks.zip", members())
    for name, content in coco.files():
        member = "annotations/instances_default.json", "".join(storage.json_pieces(content)).encode()
        storage.write_zip(out / f"{stem(name)}.zip", [member])
    labels = [*list(source.names)[1:], *([IGNORE_LABEL] if voc.has_void else [])]
    project = [{"name": title(source, k), "color": hex_colour(source.colours[k]), "attributes": []} for k in labels]
    (out / "labels.json").write_text(json.dumps(project, indent=1) + "\n", "utf-8")
    return ["paste labels.json as the raw labels of a CVAT project; upload masks.zip as Segmentation mask 1.1 or another zip as "
            "COCO 1.0; masks.zip has no place for confidence, and has detections only where the label map agrees"]  # fmt: skip


WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "yolo-seg": write_yolo,
    "voc": write_voc,
    "label-studio": label_studio.write,
    "cvat": write_cvat,
    "png": write_png,
}
