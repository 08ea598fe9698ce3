"""Instances and detections in COCO's JSON: written a line each, read one image at a time, validated as they are read.

There may be millions of them. `storage.write_json` gives each record of a list a line of its own, and stages write records in
the order of their images, so such a file is streamed. A file with another layout or order is read whole.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from unseg.core import masks
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.masks import Mask
from unseg.core.storage import read_json

CLASS_AGNOSTIC = 0  # category of a mined mask, before clustering
IMAGE = re.compile(r'"image_id": (\d+)[,}]')  # in a line of a record
AGAIN = "make it again from the same data/images.json"

Record = dict[str, Any]
Box = tuple[float, float, float, float]  # xywh, pixels


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of an image: a COCO annotation."""

    key: ClassVar[str | None] = "annotations"  # of the list in a file

    id: int
    image_id: int
    category_id: int  # cluster 0..K-1; of ground truth: class 1..C
    mask: Mask
    bbox: Box  # the mask's
    iscrowd: bool = False  # of ground truth: a region of many objects

    @classmethod
    def from_coco(cls, record: Record) -> "Instance":
        """Raises ValueError for an invalid record."""
        return cls(number(record, "id"), *common(record), bool(record.get("iscrowd", 0)))

    def to_coco(self) -> Record:
        return {
            "id": self.id,
            "image_id": self.image_id,
            "category_id": self.category_id,
            "segmentation": self.mask.rle,
            "bbox": list(self.bbox),
            "area": self.mask.area,
            "iscrowd": int(self.iscrowd),
        }


@dataclass(frozen=True, slots=True)
class Detection:
    """A scored object of an image: a COCO result."""

    key: ClassVar[str | None] = None

    image_id: int
    category_id: int  # cluster 0..K-1
    mask: Mask
    bbox: Box  # the detector's
    score: float  # 0..1

    @classmethod
    def from_coco(cls, record: Record) -> "Detection":
        """Raises ValueError for an invalid record."""
        if not isinstance(score := record.get("score"), (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"a record has the score {score!r}; it must be from 0 to 1")
        return cls(*common(record), float(score))

    def to_coco(self) -> Record:
        return {
            "image_id": self.image_id,
            "category_id": self.category_id,
            "segmentation": self.mask.rle,
            "bbox": list(self.bbox),
            "score": self.score,
        }


Object = TypeVar("Object", Instance, Detection)


def instance(id: int, image_id: int, category_id: int, mask: Mask) -> Instance:
    """An instance with the box of its mask."""
    return Instance(id, image_id, category_id, mask, mask.bbox)


def as_detection(x: Instance) -> Detection:
    """An instance as a detection of score 1."""
    return Detection(x.image_id, x.category_id, x.mask, x.bbox, 1.0)


def common(record: Record) -> tuple[int, int, Mask, Box]:
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, (int, float)) for v in bbox):
        raise ValueError(f"a record has the bbox {bbox!r}; it must be [x, y, width, height]")
    if (category := number(record, "category_id")) < 0:
        raise ValueError(f"a record has the category_id {category}; it must be at least 0")
    x, y, w, h = map(float, bbox)
    return number(record, "image_id"), category, masks.from_rle(record.get("segmentation", {})), (x, y, w, h)


def number(record: Record, key: str) -> int:
    if not isinstance(value := record.get(key), int) or isinstance(value, bool):
        raise ValueError(f"a record has no {key}" if value is None else f"a record has the {key} {value!r}")
    return value


def read_by_image(
    path: str | Path,
    kind: type[Object],
    images: Collection[ImageRecord],
    splits: Collection[ImageRecord] | None = None,
    clusters: int | None = None,
) -> Iterator[tuple[ImageRecord, list[Object]]]:
    """Images and their instances, by rising image id; an image without any has [].

    Args:
        images: every image that the file may refer to.
        splits: those that are wanted; None: all.
        clusters: K; categories must be below it. None: any.

    Raises:
        InputError: no such file, an invalid record, an image that is not known, or a mask of another size than its image.
    """
    known = {image.id: image for image in images}
    wanted = known if splits is None else {image.id: image for image in splits}
    groups = groupby(ordered(path, kind.key), key=lambda record: image_of(path, record))
    following = next(groups, None)
    for id in sorted(known):
        found: list[Object] = []
        if following is not None and following[0] <= id:
            if following[0] < id:
                break
            if id in wanted:
                found = [parse(path, kind, record, known[id], clusters) for record in following[1]]
                check_masks(path, found, known[id])
            following = next(groups, None)
        if id in wanted:
            yield known[id], found
    if following is not None:
        raise InputError(f"{path}: no image has the id {following[0]}; {AGAIN}")


def read(
    path: str | Path,
    kind: type[Object],
    images: Collection[ImageRecord],
    splits: Collection[ImageRecord] | None = None,
    clusters: int | None = None,
) -> list[Object]:
    """As `read_by_image`, all in one list."""
    return [x for _, found in read_by_image(path, kind, images, splits, clusters) for x in found]


def parse(path: str | Path, kind: type[Object], record: Record, image: ImageRecord, clusters: int | None = None) -> Object:
    try:
        x = kind.from_coco(record)
    except ValueError as error:
        raise InputError(f"{path}: {image.file_name}: {error}; {AGAIN}") from None
    if x.mask.size != image.size:
        sizes = f"{list(x.mask.size)}, {image.file_name} is {list(image.size)} (rows, columns)"
        raise InputError(f"{path}: a mask is {sizes}; {AGAIN}")
    if clusters is not None and x.category_id >= clusters:
        raise InputError(f"{path}: {image.file_name} has cluster {x.category_id}; it must be from 0 to {clusters - 1}; {AGAIN}")
    return x


def check_masks(path: str | Path, found: Iterable[Instance | Detection], image: ImageRecord) -> None:
    try:
        masks.check([x.mask for x in found])
    except ValueError as error:
        raise InputError(f"{path}: {image.file_name}: {error}; {AGAIN}") from None


def stream(path: str | Path, key: str | None = None) -> Iterator[Record]:
    """The records of a file's list, or of the list at `key`, one at a time.

    Raises:
        InputError: no such file, not JSON, or no such list of records.
    """
    opening = "[" if key is None else f"{json.dumps(key)}: ["
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            if not any(text.rstrip("\n") == opening for text in file):
                yield from read_whole(path, key)
                return
            first = True
            for text in file:
                if text.startswith("]"):
                    return
                if first and not text.rstrip().endswith(("}", "},")):  # a record of several lines
                    yield from read_whole(path, key)
                    return
                first = False
                yield check_record(path, json.loads(text.rstrip().removesuffix(",")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); make it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    raise InputError(f"{path} is cut short; make it again")


def ordered(path: str | Path, key: str | None = None) -> Iterator[Record]:
    """As `stream`, by rising image_id; a file in another order is read whole."""
    last = -1
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for text in file:
                if (match := IMAGE.search(text)) and (int(match[1]) < last or not text.startswith("{")):
                    return iter(sorted(stream(path, key), key=lambda record: image_of(path, record)))
                last = int(match[1]) if match else -1 if text.startswith("]") else last
    except (OSError, UnicodeDecodeError):
        pass  # `stream` raises it
    return stream(path, key)


def image_of(path: str | Path, record: Record) -> int:
    try:
        return number(record, "image_id")
    except ValueError as error:
        raise InputError(f"{path}: {error}; {AGAIN}") from None


def read_whole(path: str | Path, key: str | None) -> Iterator[Record]:
    """As `stream`, for a file in any layout."""
    content = read_json(path)
    records = content.get(key) if isinstance(content, dict) else content if key is None else None
    if not isinstance(records, list):
        raise InputError(f"{path} has no list of records{f' {key}' if key else ''}; make it again")
    yield from (check_record(path, record) for record in records)


def check_record(path: str | Path, content: Any) -> Record:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {str(content)[:40]} is no record; make it again")
    return content


class Lookup(Generic[Object]):
    """The instances of a file by image, read from it when they are asked for.

    Raises:
        InputError: as `read_by_image`.
    """

    def __init__(self, path: str | Path, kind: type[Object]) -> None:
        self.path, self.kind = path, kind
        self.held: dict[int, list[Record]] = {}  # of a file with another layout
        self.places: dict[int, list[tuple[int, int]]] = {}  # stretches of lines: offset of the first, and their number
        last, offset = None, 0
        try:
            with Path(path).open("rb") as file:
                for text in file:
                    if text.startswith(b"{") and (match := IMAGE.search(text.decode("utf-8", "replace"))):
                        image = int(match[1])
                        stretches = self.places.setdefault(image, [])
                        if image == last:
                            stretches[-1] = stretches[-1][0], stretches[-1][1] + 1
                        else:
                            stretches.append((offset, 1))
                        last = image
                    elif text.rstrip() not in (b"[", b"]", b"[]"):
                        break
                    offset += len(text)
                else:
                    return
        except OSError:
            pass  # `stream` raises it
        self.places = {}
        for record in stream(path, kind.key):
            self.held.setdefault(image_of(path, record), []).append(record)

    def __getitem__(self, image: ImageRecord) -> list[Object]:
        """The instances of an image, in their order in the file."""
        records = self.held.get(image.id, [])
        if image.id in self.places:
            with Path(self.path).open("rb") as file:
                for offset, lines in self.places[image.id]:
                    file.seek(offset)
                    records = records + [json.loads(file.readline().rstrip().removesuffix(b",")) for _ in range(lines)]
        found = [parse(self.path, self.kind, check_record(self.path, record), image) for record in records]
        check_masks(self.path, found, image)
        return found
