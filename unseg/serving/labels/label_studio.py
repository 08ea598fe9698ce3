"""Label Studio's JSON: tasks with predictions as brushes and as polygons, and the annotations that came back.

A region's points, its x, y, width and height are in per cent of the photograph. Shapes: H rows, W columns, P points (x, y).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from unseg.core import storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.masks import Mask
from unseg.core.storage import JsonLines, json_line, write_json
from unseg.serving.labels import brush
from unseg.serving.labels.corrections import Corrections, find
from unseg.serving.labels.polygons import outlines, rasterise
from unseg.serving.labels.source import Labelled, LabelSource, Photographs, hex_colour, label_masks, title

Json = dict[str, Any]
Object = tuple[str, Mask, str, float | None]  # its label, mask, id and score
LOCAL_FILES = "/data/local-files/?d="  # the address of a photograph below LOCAL_FILES_DOCUMENT_ROOT
NO_PIXELS = ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")  # of results
REGIONS = ("brushlabels", "polygonlabels", "rectanglelabels")


# ---- export


def write(out: Path, source: LabelSource, photographs: Photographs) -> list[str]:
    """tasks.json: a task a photograph; its labels and its detections as predictions, of brushes and of polygons; config.xml."""
    has_void, holes = False, 0

    def tasks() -> Iterator[str]:
        nonlocal has_void, holes
        for p in photographs:
            has_void |= bool((p.labels == IGNORE_LABEL).any())
            made, name = [], p.image.file_name
            for kind, objects in (("labels", labelled(p, source)), ("detections", detected(p, source))):
                drawn = [outlined(p, *o) for o in objects]
                holes += sum(count for _, count in drawn)
                made.append(prediction(f"unseg {kind}", [painted(p, *o) for o in objects]))
                made.append(prediction(f"unseg {kind}, polygons", [r for regions, _ in drawn for r in regions]))
            made = made if source.detections is not None else made[:2]
            yield json_line({"data": {"image": LOCAL_FILES + quote(name), "file_name": name}, "predictions": made})

    write_json(out / "tasks.json", JsonLines(tasks()))
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    for tag, name in (("BrushLabels", "label"), ("PolygonLabels", "polygon")):
        control = ElementTree.SubElement(view, tag, name=name, toName="image")
        for k in [*list(source.names)[1:], *([IGNORE_LABEL] if has_void else [])]:
            ElementTree.SubElement(control, "Label", value=title(source, k), background=hex_colour(source.colours[k]))
    ElementTree.indent(view)
    (out / "config.xml").write_bytes(ElementTree.tostring(view, "utf-8") + b"\n")
    return [
        f"config.xml is the labelling interface; a task's photograph is {LOCAL_FILES}NAME, below Label Studio's "
        "LOCAL_FILES_DOCUMENT_ROOT",
        f"each prediction is there twice, as brushes and as polygons; {holes} holes of polygons are joined to their outlines by "
        "a line, and an object of several parts is one polygon a part",
    ]


def labelled(p: Labelled, source: LabelSource) -> list[Object]:
    return [(title(source, k), mask, f"label-{k}", p.scores.get(k)) for k, mask in label_masks(p)]


def detected(p: Labelled, source: LabelSource) -> list[Object]:
    return [(source.names[d.category_id], d.mask, f"detection-{n}", d.score) for n, d in enumerate(p.detections)]


def prediction(version: str, regions: list[Json]) -> Json:
    known = [r["score"] for r in regions if "score" in r]
    return {"model_version": version, "result": regions} | ({"score": round(sum(known) / len(known), 4)} if known else {})


def region(p: Labelled, kind: str, name: str, id: str, value: Json, score: float | None) -> Json:
    """A result; the control tag of brushes is `label`, that of polygons `polygon`."""
    height, width = p.image.size
    control = "label" if kind == "brushlabels" else "polygon"
    fields = {"id": id, "from_name": control, "to_name": "image", "type": kind, "image_rotation": 0,
              "original_width": width, "original_height": height, "value": value | {kind: [name]}}  # fmt: skip
    return fields | ({} if score is None else {"score": score})


def painted(p: Labelled, name: str, mask: Mask, id: str, score: float | None) -> Json:
    return region(p, "brushlabels", name, id, {"format": "rle", "rle": brush.encode(mask.decode())}, score)


def outlined(p: Labelled, name: str, mask: Mask, id: str, score: float | None) -> tuple[list[Json], int]:
    """A region for each part of a mask, and the number of its holes."""
    parts, holes = outlines(mask.decode())
    scale = 100 / np.array([p.image.width, p.image.height])
    values = [{"points": np.round(points * scale, 6).tolist(), "closed": True} for points in parts]
    return [region(p, "polygonlabels", name, f"{id}-{n}", value, score) for n, value in enumerate(values)], holes


# ---- import


def read(path: Path, known: Mapping[str, ImageRecord]) -> Corrections:
    """The last annotation of each task that is not cancelled: brushes, polygons, rectangles, the later above the earlier.

    Tasks without an annotation, and results that have no pixels (choices, texts), are counted and left out.
    """
    tasks, made, others = storage.read_json(path), Corrections(path), Counter[str]()
    if not isinstance(tasks, list):
        raise InputError(f"{path} is no list of tasks; export the project as JSON, not as JSON-MIN")
    waiting = 0
    for number, task in enumerate(tasks, 1):
        name = f"task {number}"
        try:
            done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
            if not done:
                waiting += 1
                continue
            image = find(path, task_name(task["data"], known), known)
            name, labels = image.file_name, np.zeros(image.size, np.uint8)
            for r in done[-1]["result"]:
                if (kind := r.get("type")) in NO_PIXELS:
                    others[kind] += 1
                    continue
                mask = region_mask(r, image)
                if len(names := r["value"][kind]) != 1:
                    raise ValueError(f"a region has {len(names)} labels; it must have one")
                labels[mask] = made.value(names[0])
        except ValueError as error:
            raise InputError(f"{path}: {name}: {storage.one_line(error)}") from None
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            reason = f"{type(error).__name__}: {storage.one_line(error)}"
            raise InputError(f"{path} is not as Label Studio exports JSON ({reason})") from None
        made.add(image, labels)
    made.notes += [f"{waiting} tasks wait for an annotation"] if waiting else []
    made.notes += [f"{count} results of the type {kind} are left out" for kind, count in sorted(others.items())]
    return made


def region_mask(r: Json, image: ImageRecord) -> np.ndarray:
    """[H, W] bool of a result. Raises ValueError for a region that cannot be read or does not fit the photograph."""
    if (kind := r.get("type")) not in REGIONS:
        raise ValueError(f"a region is {kind!r}; brushes, polygons and rectangles with labels are read ({', '.join(REGIONS)})")
    if (size := (r["original_height"], r["original_width"])) != image.size:
        raise ValueError(f"a {kind.removesuffix('labels')} is {size}, the photograph {image.size} (rows, columns)")
    if r.get("image_rotation"):
        raise ValueError(f"the photograph was turned by {r['image_rotation']} degrees in Label Studio; turn it back")
    value = r["value"]
    if kind == "brushlabels":
        if value.get("format") != "rle":
            raise ValueError(f"a brush has the format {value.get('format')!r}, not rle")
        return brush.decode(value["rle"], image.size)
    scale = np.array([image.width, image.height]) / 100
    points = np.array(value["points"] if kind == "polygonlabels" else corners(value, scale), float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not (np.abs(points) <= 200).all():
        raise ValueError(f"a {kind.removesuffix('labels')} is no list of three points or more in per cent of the photograph")
    return rasterise([points * scale], image.size)


def corners(value: Json, scale: np.ndarray) -> np.ndarray:
    """[4, 2]: the corners of a rectangle, turned clockwise around its first one, in pixels; per cent in, per cent out."""
    x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
    sides = np.array([(0, 0), (w, 0), (w, h), (0, h)]) * scale  # pixels
    angle = np.radians(float(value.get("rotation", 0)))
    sin, cos = np.sin(angle), np.cos(angle)
    moved = np.array([x, y]) + sides @ np.array([[cos, sin], [-sin, cos]]) / scale
    return np.asarray(moved)


def task_name(data: Json, known: Iterable[str]) -> str:
    """The photograph of a task: its `file_name`, as `unseg export-labels` writes it, or the longest end of its address."""
    if "file_name" in data:
        return data["file_name"]  # type: ignore[no-any-return]
    address = urlsplit(data["image"])
    place = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    parts = PurePosixPath(place).parts
    return next((name for i in range(len(parts)) if (name := "/".join(parts[i:])) in known), place)
