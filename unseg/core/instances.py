"""Instances and detections in COCO's JSON, read one image at a time and validated on reading.

A file may have millions of records. `storage.write_json` writes one record per line, and stages write the records of an image
together. Of such a file only the offset of each image's lines is kept in memory. A file with another layout is loaded whole.
"""

import json
import re
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from unseg.core import masks
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.masks import Mask
from unseg.core.storage import read_json

CLASS_AGNOSTIC = 0  # category of a mined mask, before clustering
RECORD = re.compile(rb'\{.*?"image_id": (\d{1,18})[,}].*(?<=\}),?\n')  # one line of a file
REMEDY = "make it again from the same data/images.json"

Record = dict[str, Any]
Images = Collection[ImageRecord]
Box = tuple[float, float, float, float]  # xywh, pixels


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of an image: a COCO annotation."""

    list_key: ClassVar[str | None] = "annotations"  # key of the list in a file

    id: int
    image_id: int
    category_id: int  # cluster 0..K-1; in ground truth: class 1..C
    mask: Mask
    bbox: Box  # of the mask
    iscrowd: bool = False  # in ground truth: a region of many objects

    @classmethod
    def from_coco(cls, record: Record) -> "Instance":
        """Raises ValueError for an invalid record."""
        return cls(integer(record, "id"), *common_fields(record), bool(record.get("iscrowd", 0)))

    def to_coco(self) -> Record:
        return {"id": self.id, **common_record(self), "area": self.mask.area, "iscrowd": int(self.iscrowd)}


@dataclass(frozen=True, slots=True)
class Detection:
    """A scored object of an image: a COCO result."""

    list_key: ClassVar[str | None] = None  # the file is the list

    image_id: int
    category_id: int  # cluster 0..K-1
    mask: Mask
    bbox: Box  # from the detector
    score: float  # 0..1

    @classmethod
    def from_coco(cls, record: Record) -> "Detection":
        """Raises ValueError for an invalid record."""
        if not isinstance(score := record.get("score"), (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"a record has the score {score!r}; it must be from 0 to 1")
        return cls(*common_fields(record), float(score))

    def to_coco(self) -> Record:
        return {**common_record(self), "score": self.score}


Object = TypeVar("Object", Instance, Detection)


def instance(id: int, image_id: int, category_id: int, mask: Mask) -> Instance:
    """An instance with the box of its mask."""
    return Instance(id, image_id, category_id, mask, mask.bbox)


def as_detection(x: Instance) -> Detection:
    """An instance as a detection of score 1."""
    return Detection(x.image_id, x.category_id, x.mask, x.bbox, 1.0)


def common_record(x: Instance | Detection) -> Record:
    return {"image_id": x.image_id, "category_id": x.category_id, "segmentation": x.mask.rle, "bbox": list(x.bbox)}


def common_fields(record: Record) -> tuple[int, int, Mask, Box]:
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in bbox):
        raise ValueError(f"a record has the bbox {bbox!r}; it must be [x, y, width, height]")
    if (category := integer(record, "category_id")) < 0:
        raise ValueError(f"a record has the category_id {category}; it must be at least 0")
    x, y, w, h = map(float, bbox)
    return integer(record, "image_id"), category, masks.from_rle(record.get("segmentation", {})), (x, y, w, h)


def integer(record: Record, key: str) -> int:
    if not isinstance(value := record.get(key), int) or isinstance(value, bool):
        raise ValueError(f"a record has no {key}" if value is None else f"a record has the {key} {value!r}")
    return value


def parse(path: str | Path, kind: type[Object], record: Record, image: ImageRecord, clusters: int | None = None) -> Object:
    """A record of an image. Raises InputError if it is invalid; `check_masks` checks the run lengths."""
    try:
        x = kind.from_coco(record)
    except ValueError as error:
        raise InputError(f"{path}: {image.file_name}: {error}; {REMEDY}") from None
    if x.mask.size != image.size:
        sizes = f"{list(x.mask.size)}, {image.file_name} is {list(image.size)} (rows, columns)"
        raise InputError(f"{path}: a mask is {sizes}; {REMEDY}")
    if clusters is not None and x.category_id >= clusters:
        raise InputError(f"{path}: {image.file_name} has cluster {x.category_id}; it must be from 0 to {clusters - 1}; {REMEDY}")
    return x


def check_masks(path: str | Path, objects: Iterable[Instance | Detection], image: ImageRecord) -> None:
    """Raises InputError if the run lengths of an image's masks are invalid."""
    try:
        masks.check([x.mask for x in objects])
    except ValueError as error:
        raise InputError(f"{path}: {image.file_name}: {error}; {REMEDY}") from None


class Lookup(Generic[Object]):
    """The objects of a file by image, read on demand. Can be pickled for worker processes.

    Args:
        clusters: K; categories must be below it. None: any.

    Raises:
        InputError: no such file, not JSON, or an invalid record.
    """

    def __init__(self, path: str | Path, kind: type[Object], clusters: int | None = None) -> None:
        self.path, self.clusters = path, clusters
        self.kind: type[Object] = kind
        runs = index_lines(path, kind.list_key)
        self.records = read_records(path, kind.list_key) if runs is None else {}
        self.runs = np.zeros((0, 3), np.int64) if runs is None else runs

    def image_ids(self) -> np.ndarray:
        """The ids of the images with objects, in rising order."""
        return np.unique(list(self.records) if self.records else self.runs[:, 0])

    def __getitem__(self, image: ImageRecord) -> list[Object]:
        """The objects of an image, in their order in the file."""
        records = self.records.get(image.id) or self.read_lines(image.id)
        objects = [parse(self.path, self.kind, record, image, self.clusters) for record in records]
        check_masks(self.path, objects, image)
        return objects

    def read_lines(self, image_id: int) -> list[Record]:
        first, last = np.searchsorted(self.runs[:, 0], [image_id, image_id + 1])
        if first == last:
            return []
        records: list[Record] = []
        try:
            with Path(self.path).open("rb") as file:
                for _, offset, count in self.runs[first:last].tolist():
                    file.seek(offset)
                    records += [json.loads(file.readline().rstrip(b",\n")) for _ in range(count)]
            return records
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path} is not JSON ({error}); make it again") from None


def index_lines(path: str | Path, list_key: str | None) -> np.ndarray | None:
    """Find the records of each image in a file.

    Returns:
        [R, 3] int64, by rising image id: for each run of lines of one image its id, the offset of the first line and the
        number of lines. None if the file has another layout than `storage.write_json` writes.
    """
    opening = b"[" if list_key is None else f"{json.dumps(list_key)}: [".encode()
    runs = array("q")
    inside, offset = False, 0
    try:
        with Path(path).open("rb") as file:
            for line in file:
                if not inside:
                    inside = line.rstrip() == opening
                elif line.startswith(b"]"):
                    table = np.array(runs, np.int64).reshape(-1, 3)
                    return table[np.argsort(table[:, 0], kind="stable")]
                elif not (match := RECORD.fullmatch(line)):
                    return None
                elif runs and runs[-3] == int(match[1]):
                    runs[-1] += 1
                else:
                    runs.extend((int(match[1]), offset, 1))
                offset += len(line)
    except OSError:
        pass  # `read_records` raises an InputError
    return None


def read_records(path: str | Path, list_key: str | None) -> dict[int, list[Record]]:
    """The records of a file in any layout, by image id.

    Raises:
        InputError: no such file, not JSON, or no such list of records.
    """
    content = read_json(path)
    records = content.get(list_key) if isinstance(content, dict) else content if list_key is None else None
    if not isinstance(records, list):
        raise InputError(f"{path} has no list of records{f' {list_key}' if list_key else ''}; make it again")
    by_image: dict[int, list[Record]] = {}
    for record in records:
        if not isinstance(record, dict):
            raise InputError(f"{path}: {str(record)[:40]} is no record; make it again")
        try:
            by_image.setdefault(integer(record, "image_id"), []).append(record)
        except ValueError as error:
            raise InputError(f"{path}: {error}; {REMEDY}") from None
    return by_image


def read_by_image(
    path: str | Path, kind: type[Object], images: Images, splits: Images | None = None, clusters: int | None = None
) -> Iterator[tuple[ImageRecord, list[Object]]]:
    """Images and their objects, by rising image id; an image without objects has [].

    Args:
        images: all images that the file may refer to.
        splits: those to read; None: all.
        clusters: K; categories must be below it. None: any.

    Raises:
        InputError: no such file, an invalid record, an unknown image, or a mask of another size than its image.
    """
    objects = Lookup(path, kind, clusters)
    unknown = np.setdiff1d(objects.image_ids(), [image.id for image in images])
    if len(unknown):
        raise InputError(f"{path}: no image has the id {unknown[0]}; {REMEDY}")
    for image in sorted(images if splits is None else splits, key=lambda image: image.id):
        yield image, objects[image]


def read(
    path: str | Path, kind: type[Object], images: Images, splits: Images | None = None, clusters: int | None = None
) -> list[Object]:
    """As `read_by_image`, in one list."""
    return [x for _, objects in read_by_image(path, kind, images, splits, clusters) for x in objects]
