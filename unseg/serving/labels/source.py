"""What `unseg export-labels` exports: the label maps and detections of a run, or of a folder that `unseg predict` wrote.

Shapes: H rows, W columns of a photograph. Label maps are [H, W] uint8: 0 background, cluster + 1, 255 void. Needs no torch.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image as Pillow

from unseg.clustering import naming
from unseg.clustering.naming import ClusterNames
from unseg.core import image_index, instances, masks, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Detection
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.masks import Mask
from unseg.report import overlay
from unseg.serving.run import Run

VOID = "void"  # the name of the ignore label
FIELDS = ("id", "file_name", "height", "width")


@dataclass(frozen=True)
class Labelled:
    """The labels of a photograph."""

    image: ImageRecord
    labels: np.ndarray  # [H, W] uint8
    scores: dict[int, float]  # mean probability of each label of the map, where it is known
    detections: list[Detection]  # category_id is a label; highest score first


Photographs = Iterable[Labelled]


@dataclass(frozen=True)
class LabelSource:
    """The photographs of a run or of a folder of predictions; `photograph` reads one."""

    images: list[ImageRecord]
    names: dict[int, str]  # by label, background first, without void
    colours: np.ndarray  # [256, 3] uint8, by label
    maps: dict[str, LabelMaps]  # by file name; of a run
    lut: np.ndarray  # [256] uint8: the label after merging, for the values of the files
    folder: Path | None = None  # with NAME.png; of predictions
    detections: instances.Lookup[Detection] | None = None
    shift: int = 1  # category_id + shift is the value of a label map
    scores: dict[int, dict[int, float]] = field(default_factory=dict)  # by image id, then by label
    frames: int = 0  # of videos; they are left out

    def label_map(self, image: ImageRecord) -> np.ndarray:
        """[H, W] uint8. Raises InputError if it cannot be read, has another size than its image, or has an unknown label."""
        if self.folder is None:
            where, values = self.maps[image.file_name].path, self.maps[image.file_name][image]
        else:
            where = self.folder / f"{image.file_name}.png"
            values = read_png(where, image.size)
        labels: np.ndarray = self.lut[values]
        if unknown := [k for k in present(labels) if k not in self.names and k != IGNORE_LABEL]:
            raise InputError(f"{where}: {image.file_name} has the label {unknown[0]}, which has no name; make it again")
        return labels

    def photograph(self, image: ImageRecord, score: float) -> Labelled:
        """Its label map, and its detections with a score of at least `score`."""
        found = self.detections[image] if self.detections else []
        moved = [replace(d, category_id=int(self.lut[d.category_id + self.shift])) for d in found if d.score >= score]
        kept = sorted((d for d in moved if d.category_id in self.names and d.category_id), key=lambda d: -d.score)
        return Labelled(image, self.label_map(image), self.scores.get(image.id, {}), kept)


def read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8: the values of a grey or palette PNG. Raises InputError, also if its size is not `size` (H, W)."""
    try:
        with Pillow.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as file:
            if file.size != size[::-1]:
                raise InputError(f"{path} is {file.size[::-1]}, its photograph {size} (rows, columns)")
            if file.mode not in ("L", "P", "1"):
                raise InputError(f"{path} has mode {file.mode}; a mask is a grey or palette PNG whose values are labels")
            return np.array(file).astype(np.uint8)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception as error:  # a damaged PNG raises many types
        raise InputError(f"{path} cannot be read ({storage.one_line(error)})") from None


def check_names(where: Path, names: Iterable[str]) -> None:
    """Raises InputError for a file name that is absolute, leads out of its folder or is not text, or that occurs twice."""
    seen: set[str] = set()
    for name in names:
        parts = PurePosixPath(name).parts if isinstance(name, str) else ()
        if not parts or "\0" in name or "\\" in name or name.startswith("/") or ".." in parts or name.endswith("/"):
            raise InputError(f"{where}: {name!r} is no file name below the folder of photographs")
        if name != name.encode("utf-8", "ignore").decode():
            raise InputError(f"{where}: {name!r} is not UTF-8 text; rename the photograph")
        if (key := str(PurePosixPath(name))) in seen:
            raise InputError(f"{where}: two photographs have the name {name}")
        seen.add(key)


def read(run: Run, detections: bool, clusters: ClusterNames | None) -> LabelSource:
    """The labels of a finished run, or of a folder of `unseg predict`.

    Args:
        detections: read these too.
        clusters: names, colours and merges of a run's clusters; not of predictions, which have them already.

    Raises:
        InputError: neither a run nor predictions, or a file of it is missing or invalid.
    """
    if (run / "predictions.json").is_file():
        return read_predictions(run.root, detections)
    if not run.params.exists() or clusters is None:
        raise InputError(f"{run.root} is neither the folder of a run nor one that `unseg predict` wrote; name one of them")
    return read_run(run, detections, clusters)


def read_run(run: Run, detections: bool, clusters: ClusterNames) -> LabelSource:
    """The final segmenter's predictions, and for other photographs the pseudo-labels that it was trained on."""
    final, index = run.value("final", str), run / "data/images.json"
    images = image_index.read_images(index)
    check_names(index, (i.file_name for i in images))
    files = [LabelMaps(run / f"data/{name}.zip") for name in (f"predictions/{final}", f"labels-{final}")]
    maps = {i.file_name: file for file in files[::-1] for i in images if i in file}
    images = [i for i in images if i.file_name in maps]
    path = run / f"data/{run.value('detections', str)}.json"
    found = instances.Lookup(path, Detection, clusters.count) if detections else None
    return LabelSource(images, clusters.names(), overlay.colour_table(clusters), maps, clusters.label_lut(), detections=found)


def read_predictions(root: Path, detections: bool) -> LabelSource:
    """predictions.json, labels/ and, if it is there, instances.json. Frames of videos are left out."""
    path = root / "predictions.json"
    content = storage.read_json(path)
    try:
        rows = [ImageRecord(**{key: row[key] for key in FIELDS}, split="val") for row in content["images"]]
        names = {0: naming.BACKGROUND, **{int(c["id"]): str(c["name"]) for c in content["categories"]}}
        colours = np.zeros((256, 3), np.uint8)
        for c in content["categories"]:
            colours[int(c["id"])] = list(bytes.fromhex(c["colour"].removeprefix("#")))
        scores: dict[int, dict[int, float]] = {}
        for a in content["annotations"]:
            scores.setdefault(a["image_id"], {})[a["category_id"]] = float(a["score"])
        numbers = [n for i in rows for n in (i.id, *i.size)]
        if not all(type(n) is int and n > 0 for n in numbers) or max(names) >= IGNORE_LABEL or min(names) < 0:
            raise ValueError("a size or an id is out of range")
        if not all(0 <= x <= 1 for labels in scores.values() for x in labels.values()):
            raise ValueError("a score is not from 0 to 1")
        if len({i.id for i in rows}) < len(rows):
            raise ValueError("two pictures have the same id")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is not as `unseg predict` writes it ({storage.one_line(error)}); predict again") from None
    check_names(path, (i.file_name for i in rows))
    colours[IGNORE_LABEL] = 255
    images = [i for i in rows if not (root / f"labels/{PurePosixPath(i.file_name).parent}.zip").is_file()]
    for i in images:
        if not (root / f"labels/{i.file_name}.png").resolve().is_relative_to(root.resolve()):
            raise InputError(f"{root / 'labels' / i.file_name}.png leads out of {root}")
    file = root / "instances.json"
    found = instances.Lookup(file, Results, IGNORE_LABEL) if detections and file.is_file() else None
    lut = np.arange(256, dtype=np.uint8)
    return LabelSource(images, names, colours, {}, lut, root / "labels", found, 0, scores, len(rows) - len(images))


class Results(Detection):
    """A detection in instances.json, whose list has a key."""

    list_key = "annotations"


def title(source: LabelSource, label: int) -> str:
    return VOID if label == IGNORE_LABEL else source.names[label]


def present(labels: np.ndarray) -> list[int]:
    """The labels of a map but background, in rising order."""
    return [int(k) for k in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)) if k]


def label_masks(p: Labelled) -> list[tuple[int, Mask]]:
    """The labels of a map but background, void last, each with its mask."""
    labels = np.asfortranarray(p.labels)  # run lengths go down the columns
    return [(k, masks.encode(labels == k)) for k in present(p.labels)]


def hex_colour(rgb: np.ndarray) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb.tolist())
