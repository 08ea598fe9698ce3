"""Readers of corrected labels: COCO, Label Studio's JSON, PNG. They hold the maps of all photographs as PNGs in memory.

Shapes: H rows, W columns of a photograph. Label maps are [H, W] uint8; their values are positions in the file's titles, 255 void.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from unseg.clustering.naming import BACKGROUND
from unseg.core import image_index, masks, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import photos, readers
from unseg.serving.labels import brush
from unseg.serving.labels.source import VOID, check_names, read_png
from unseg.serving.run import Run

Json = dict[str, Any]


@dataclass
class Corrections:
    """Label maps of some photographs. The file's classes are numbered in their order, background first."""

    path: Path
    titles: list[str] = field(default_factory=lambda: [BACKGROUND])
    maps: dict[str, bytes] = field(default_factory=dict)  # by file name: a PNG, whose values are positions in titles, or 255
    waiting: int = 0  # tasks of Label Studio that nobody has annotated

    def value(self, title: Any) -> int:
        """The value of a class in the label maps; a new class gets the next one. Raises InputError if there are too many."""
        if not isinstance(title, str) or not (text := " ".join(title.split())):
            raise InputError(f"{self.path}: {title!r} is no name of a class")
        if text.casefold() == VOID:
            return IGNORE_LABEL
        known = [t.casefold() for t in self.titles]
        if text.casefold() in known:
            return known.index(text.casefold())
        if len(self.titles) == IGNORE_LABEL:
            raise InputError(f"{self.path} has more than {IGNORE_LABEL - 1} classes")
        self.titles.append(text)
        return len(self.titles) - 1

    def add(self, image: ImageRecord, labels: np.ndarray) -> None:
        if image.file_name in self.maps:
            raise InputError(f"{self.path} has {image.file_name} twice; remove one")
        self.maps[image.file_name] = storage.encode_png(labels)


def photographs(run: Run, folder: Path | None) -> dict[str, ImageRecord]:
    """The photographs that can be labelled, by name: those of a folder, or of the run. Raises InputError if there are none."""
    if folder is None:
        index = run / "data/images.json"
        if not index.exists():
            raise InputError(f"{index}: no such file; name the folder of a run by --run, or the photographs by --photos")
        return {i.file_name: i for i in image_index.read_images(index)}
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    dataset = readers.find_folder(readers.Data("folder", str(folder), str(folder), None, None, None))
    found = {}
    for n, c in enumerate(sorted(dataset.candidates, key=lambda c: c.file_name), 1):
        try:
            with Pillow.open(photos.pillow_source(folder / c.file_name)) as file:
                width, height = file.size[::-1] if photos.orientation(file) > 4 else file.size
        except Exception:  # a damaged file raises many types; labels for it are then labels of an unknown photograph
            continue
        found[c.file_name] = ImageRecord(n, c.file_name, height, width, "both")
    if not found:
        raise InputError(f"{folder} has no photograph")
    return found


def find(path: Path, name: Any, known: Mapping[str, ImageRecord]) -> ImageRecord:
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{path}: there is no photograph {name!r}; give the run that has it by --run, or its folder by --photos")
    return known[name]


def read_coco(path: Path, known: Mapping[str, ImageRecord]) -> Corrections:
    """A JSON file with COCO's images, categories and annotations: polygons or run lengths; later annotations lie above."""
    content, made = storage.read_json(path), Corrections(path)
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


def read_label_studio(path: Path, known: Mapping[str, ImageRecord]) -> Corrections:
    """Label Studio's JSON: the last annotation of each task that is not cancelled; tasks without one are left out."""
    tasks, made = storage.read_json(path), Corrections(path)
    if not isinstance(tasks, list):
        raise InputError(f"{path} is no list of tasks; export the project as JSON, not as JSON-MIN")
    for number, task in enumerate(tasks, 1):
        name = f"task {number}"
        try:
            done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
            if not done:
                made.waiting += 1
                continue
            image = find(path, task_name(task["data"], known), known)
            name, labels = image.file_name, np.zeros(image.size, np.uint8)
            for r in done[-1]["result"]:
                if r.get("type") != "brushlabels" or r["value"].get("format") != "rle":
                    raise ValueError(f"a region is {r.get('type')!r}; only brush masks (brushlabels) are read")
                if (size := (r["original_height"], r["original_width"])) != image.size:
                    raise ValueError(f"a brush is {size}, the photograph {image.size} (rows, columns)")
                if len(names := r["value"]["brushlabels"]) != 1:
                    raise ValueError(f"a brush has {len(names)} labels; it must have one")
                labels[brush.decode(r["value"]["rle"], image.size)] = made.value(names[0])
        except ValueError as error:
            raise InputError(f"{path}: {name}: {storage.one_line(error)}") from None
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {storage.one_line(error)}"
            raise InputError(f"{path} is not as Label Studio exports JSON ({reason})") from None
        made.add(image, labels)
    return made


def task_name(data: Json, known: Mapping[str, ImageRecord]) -> str:
    """The photograph of a task: its `file_name`, as `unseg export-labels` writes it, or the longest end of its address."""
    if "file_name" in data:
        return data["file_name"]  # type: ignore[no-any-return]
    address = urlsplit(data["image"])
    place = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    parts = PurePosixPath(place).parts
    return next((name for i in range(len(parts)) if (name := "/".join(parts[i:])) in known), place)


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
    stems: dict[str, list[str]] = {}
    for name in known:
        stems.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    files = sorted(folder.rglob("*.png"))
    if not files:
        raise InputError(f"{folder} has no mask; NAME.jpg needs NAME.png or NAME.jpg.png")
    for file in files:
        name = file.relative_to(folder).as_posix().removesuffix(".png")
        same = stems.get(name, [])
        image = find(file, name if name in known or len(same) != 1 else same[0], known)
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


def read(path: Path, format: str, known: Mapping[str, ImageRecord], names: Mapping[int, str]) -> Corrections:
    """Read corrected labels.

    Args:
        path: a JSON file, or a folder with one; for png a folder of PNGs.
        known: the photographs, by name.
        names: of the run's labels; for values of PNGs that nothing else names.

    Raises:
        InputError: the file cannot be read, or names an unknown photograph, or a mask does not fit its photograph.
    """
    if format == "png":
        made = read_png_folder(path, known, names)
    else:
        if path.is_dir():
            files = sorted(path.rglob("*.json"))
            if len(files) != 1:
                raise InputError(f"{path} has {len(files)} JSON files; name one")
            path = files[0]
        made = read_coco(path, known) if format == "coco" else read_label_studio(path, known)
    if not made.maps:
        raise InputError(f"{path} has no labelled photograph" + (f"; {made.waiting} tasks wait" if made.waiting else ""))
    return made
