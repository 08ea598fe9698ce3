"""Readers of corrected labels: COCO's JSON, CVAT's archives, PNGs; label_studio.py reads that tool's JSON.

Shapes: H rows, W columns of a photograph. Label maps are [H, W] uint8; their values are positions in the file's titles, 255 void.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from unseg.core import masks, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, PNG_OVERHEAD
from unseg.serving.labels import label_studio
from unseg.serving.labels.corrections import Corrections, find
from unseg.serving.labels.source import check_names, read_png

Json = dict[str, Any]
CLASSES = "SegmentationClass/"


def read_coco(path: Path, content: Any, known: Mapping[str, ImageRecord]) -> Corrections:
    """COCO's images, categories and annotations: polygons or run lengths; later annotations lie above."""
    made = Corrections(path)
    try:
        rows = {row["id"]: (row["file_name"], row.get("height"), row.get("width")) for row in content["images"]}
        values = {c["id"]: made.value(c["name"]) for c in content["categories"]}
        annotations: dict[Any, list[Json]] = {id: [] for id in rows}
        for a in content["annotations"]:
            if a["category_id"] not in values:
                raise InputError(f"{path}: an annotation has the category {a['category_id']!r}, which is not listed")
            if a["image_id"] not in rows:
                raise InputError(f"{path}: an annotation has the image {a['image_id']!r}, which is not listed")
            annotations[a["image_id"]].append(a)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not COCO's JSON ({type(error).__name__}: {storage.one_line(error)})") from None
    check_names(path, (name for name, _, _ in rows.values()))
    images = {id: find(path, name, known) for id, (name, _, _) in rows.items()}  # before any mask is decoded
    for id, image in images.items():
        if (size := rows[id][1:]) != image.size and size != (None, None):
            raise InputError(f"{path}: {image.file_name} is {size}, the photograph {image.size} (rows, columns)")
        labels = np.zeros(image.size, np.uint8)
        for a in annotations[id]:
            labels[segmentation(path, image, a.get("segmentation"))] = values[a["category_id"]]
        made.add(image, labels)
    return made


def segmentation(path: Path, image: ImageRecord, value: Any) -> np.ndarray:
    """[H, W] bool from COCO's polygons, or its run lengths, compressed or not. Raises InputError."""
    try:
        if isinstance(value, dict) and isinstance(value.get("counts"), list):
            if list(value["size"]) == list(image.size) and sum(value["counts"]) != image.height * image.width:
                raise ValueError("the run lengths of a mask do not add up to its pixels")
            mask = masks.from_rle(coco_mask.frPyObjects(value, *value["size"]))
        elif isinstance(value, dict):
            mask = masks.from_rle(value)
        else:
            most = 2 * max(image.size)  # far corners would take pycocotools much memory
            if not value or not all(len(p) >= 6 and len(p) % 2 == 0 and np.abs(p).max() <= most for p in value):
                raise ValueError("a segmentation is neither polygons near the photograph nor run lengths")
            mask = masks.from_rle(coco_mask.merge(coco_mask.frPyObjects(value, *image.size)))
        if mask.size != image.size:
            raise ValueError(f"a mask is {mask.size}, the photograph {image.size} (rows, columns)")
        masks.check([mask])
        return mask.decode()
    except Exception as error:  # pycocotools raises many types
        raise InputError(f"{path}: {image.file_name}: {storage.one_line(error)}") from None


def read_png_folder(path: Path, known: Mapping[str, ImageRecord], names: Mapping[int, str]) -> Corrections:
    """A folder of PNGs, NAME.jpg.png or NAME.png, grey or palette; classes.tsv has the names of the values.

    Args:
        names: those of the values without classes.tsv.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    made, folder = Corrections(path), path / "labels" if (path / "labels").is_dir() else path
    table = next((p for p in (path / "classes.tsv", folder.parent / "classes.tsv") if p.is_file()), None)
    values = {k: made.value(name) for k, name in (read_classes(table) if table else names).items()}
    stems = by_stem(known)
    files = sorted(folder.rglob("*.png"))
    if not files:
        raise InputError(f"{folder} has no mask; NAME.jpg needs NAME.png or NAME.jpg.png")
    for file in files:
        name = file.relative_to(folder).as_posix().removesuffix(".png")
        image = find(file, stems.get(name, name), known)
        read, labels = read_png(file, image.size), np.full(image.size, IGNORE_LABEL, np.uint8)
        for k in np.unique(read).tolist():
            if k != IGNORE_LABEL and k not in values:
                raise InputError(f"{file} has the value {k}, which has no name in {table or 'clusters.yaml of the run'}")
            labels[read == k] = IGNORE_LABEL if k == IGNORE_LABEL else values[k]
        made.add(image, labels)
    return made


def read_classes(path: Path) -> dict[int, str]:
    """The names in classes.tsv, by value. Raises InputError."""
    try:
        rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:] if line.strip()]
        return {int(row[0]): row[1] for row in rows}
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"{path} is no table of value, name and colour ({storage.one_line(error)})") from None


def by_stem(known: Iterable[str]) -> dict[str, str]:
    """The photographs by their names, and by their names without ending where only one has that."""
    stems: dict[str, list[str]] = {}
    for name in known:
        stems.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    return {stem: names[0] for stem, names in stems.items() if len(names) == 1} | {name: name for name in known}


def read_cvat(path: Path, known: Mapping[str, ImageRecord]) -> Corrections:
    """An archive that CVAT exports, as COCO 1.0 or as Segmentation mask 1.1. Nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            check_names(path, (name for name in names if not name.endswith("/")))
            if "labelmap.txt" in names:
                return read_cvat_masks(path, archive, known)
            files = [name for name in names if name.endswith(".json")]
            if len(files) != 1:
                raise InputError(f"{path} has neither labelmap.txt nor one JSON file; export Segmentation mask 1.1 or COCO 1.0")
            return read_coco(path, json.loads(archive.read(files[0])), known)
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged archive raises many types
        raise InputError(f"{path} is not an archive that CVAT exports ({storage.one_line(error)})") from None


def read_cvat_masks(path: Path, archive: zipfile.ZipFile, known: Mapping[str, ImageRecord]) -> Corrections:
    """labelmap.txt has the colours of the classes; SegmentationClass/NAME.png is the map of a photograph NAME.jpg."""
    made = Corrections(path)
    values: dict[int, int] = {}  # by colour
    for line in archive.read("labelmap.txt").decode("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            title, text, *_ = line.split(":")
            red, green, blue = map(int, text.split(","))
            values[red << 16 | green << 8 | blue] = made.value(title)
    colours = np.array(sorted(values))
    lut = np.array([values[c] for c in colours.tolist()], np.uint8)
    stems = by_stem(known)
    members = [m for m in archive.infolist() if m.filename.startswith(CLASSES) and m.filename.endswith(".png")]
    found = [find(path, stems.get(n := m.filename.removeprefix(CLASSES).removesuffix(".png"), n), known) for m in members]
    for member, image in zip(members, found, strict=True):
        if member.file_size > PNG_OVERHEAD + image.height * image.width * 4:
            raise InputError(f"{path}: {member.filename} has {member.file_size} bytes; that is no mask of {image.file_name}")
        with Pillow.open(io.BytesIO(archive.read(member)), formats=["PNG"]) as file:
            if file.size != image.size[::-1]:
                raise InputError(f"{path}: {member.filename} is {file.size[::-1]}, its photograph {image.size} (rows, columns)")
            channels = np.asarray(file.convert("RGB")).astype(np.int64)  # [H, W, 3]
        pixels = channels @ np.array([1 << 16, 1 << 8, 1])  # [H, W]
        place = np.minimum(np.searchsorted(colours, pixels), len(colours) - 1)
        if (strange := pixels[colours[place] != pixels]).size:
            raise InputError(f"{path}: {member.filename} has the colour #{strange[0]:06x}, which labelmap.txt does not list")
        made.add(image, lut[place])
    return made


def read(path: Path, format: str, known: Mapping[str, ImageRecord], names: Mapping[int, str]) -> Corrections:
    """Read corrected labels.

    Args:
        path: JSON of COCO or Label Studio, or a folder with it; for cvat an archive; for png a folder of PNGs.
        known: the photographs, by name.
        names: of the run's labels; for values of PNGs that nothing else names.

    Raises:
        InputError: the file cannot be read, or names an unknown photograph, or a mask does not fit its photograph.
    """
    if format == "png":
        made = read_png_folder(path, known, names)
    elif format == "cvat":
        made = read_cvat(path, known)
    else:
        if path.is_dir():
            files = sorted(path.rglob("*.json"))
            if len(files) != 1:
                raise InputError(f"{path} has {len(files)} JSON files; name one")
            path = files[0]
        made = read_coco(path, storage.read_json(path), known) if format == "coco" else label_studio.read(path, known)
    if not made.maps:
        raise InputError("; ".join([f"{path} has no labelled photograph", *made.notes]))
    return made
