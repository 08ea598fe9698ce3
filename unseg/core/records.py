"""The forms in which artefacts travel: COCO JSON, run-length masks, zips of label maps.

Every writer is byte-stable (sorted keys, fixed dates, no clock, no path of this machine) and writes under
another name first, so that a file that exists is whole.

Shapes: H rows, W columns, of an image at its original size.
"""

import errno
import glob
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from unseg.core.console import InputError

T = TypeVar("T")
Rle = dict[str, Any]  # COCO's compressed run-length encoding: {"size": [H, W], "counts": str}
VOID = 255  # in label maps: no class known here
NO_CATEGORY = 0  # of a mined mask, before clustering
MEMBER = 1 << 16  # bytes that a label map's PNG may take beside its pixels
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Image:
    """A readable photograph, EXIF orientation applied."""

    id: int
    file_name: str  # relative to data.images, with forward slashes
    height: int  # pixels
    width: int  # pixels
    split: str  # train: learned from; val: held out for evaluation; both: learned from and evaluated

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed onto it when the block ends well, removed when it does not.

    What a killed process left of an earlier try is removed.

    Raises:
        InputError: no room, or no right, to write.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part"):
            if not running(other.name.split(".")[-2]):
                other.unlink(missing_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in NO_ROOM or error.filename in (str(part), str(path), str(path.parent)):
            raise InputError(f"{path} cannot be written: {error.strerror}; mend that and run again") from None
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def in_a_line(error: Exception) -> str:
    """What an exception says, in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def running(process: str) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass
    return True


class Lines(NamedTuple):
    """A list of records that are JSON already, written as they come."""

    texts: Iterable[str]


def write_json(path: str | Path, content: Any) -> None:
    """JSON with sorted keys; lists of records get a line each, so that diffs and `head` are of use.

    content: what JSON can hold; a list of records, alone or in a mapping, may be given as Lines, so that it need never be
    in memory as a whole.
    """
    with whole(path) as part, part.open("w") as file:
        file.writelines(pieces(content))


def to_json(content: Any) -> str:
    return "".join(pieces(content))


def line(record: Any) -> str:
    """A record as its line of JSON."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def pieces(content: Any) -> Iterator[str]:
    """The text of `to_json`, bit by bit."""

    def lines(x: Any) -> Iterator[str]:
        if isinstance(x, list) and x and isinstance(x[0], dict):
            x = Lines(map(line, x))
        if not isinstance(x, Lines):
            yield line(x)
            return
        opening = "["
        for text in x.texts:
            yield f"{opening}\n{text}"
            opening = ","
        yield "[]" if opening == "[" else "\n]"

    if isinstance(content, dict):
        opening = "{\n"
        for key in sorted(content):
            yield f"{opening}{line(key)}: "
            yield from lines(content[key])
            opening = ",\n"
        yield "\n}\n" if content else "{\n\n}\n"
        return
    yield from lines(content)
    yield "\n"


def read_json(path: str | Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a file holds; hook, as json.loads has it, makes something smaller of each mapping as it is read.

    Raises: InputError, where there is no such file or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_hook=hook)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, lists in lists in ...
        raise InputError(f"{path} is not JSON ({error}); make it again") from None


def read_images(path: str | Path, *splits: str) -> list[Image]:
    """The index of images, in the order of their ids; with splits given, those images only."""
    images = [Image(**{k: r[k] for k in ("id", "file_name", "height", "width", "split")}) for r in read_json(path)["images"]]
    return [i for i in images if not splits or i.split in splits]


def to_learn(path: str | Path) -> list[Image]:
    """The images that training may see."""
    return read_images(path, "train", "both")


def to_judge(path: str | Path) -> list[Image]:
    """The images on which the model is judged: the held-out ones, or all where none is held out."""
    return read_images(path, "val", "both") or read_images(path)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def encode(mask: np.ndarray) -> Rle:
    """[H, W] bool to run lengths."""
    return encode_all(mask[None])[0]


def encode_all(masks: np.ndarray) -> list[Rle]:
    """[M, H, W] bool to M run-length masks, in one call."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(n) for n in r["size"]], "counts": r["counts"].decode()} for r in rles]


def decode(rle: Rle) -> np.ndarray:
    """Run lengths to [H, W] bool."""
    return np.asarray(coco_mask.decode(rle), bool)


def pack(lengths: list[int], size: tuple[int, int]) -> Rle:
    """Run lengths, pixels of background first, column by column, to a mask of this size (H, W), which they add up to."""
    rle = coco_mask.frPyObjects({"size": list(size), "counts": lengths}, *size)
    return {"size": list(size), "counts": rle["counts"].decode()}


def run_lengths(counts: Sequence[str]) -> list[np.ndarray]:
    """COCO's compressed run lengths of many masks as numbers, int64, pixels of background first.

    Six bits a character from "0" on: five of the number, low ones first, and one that says that more
    follow; the last one's highest bit is the sign. From the fourth run on, the difference to the run two
    before is stored.

    Raises:
        ValueError: a text is no such thing, e.g. cut short.
    """
    if not all(isinstance(text, str) and text for text in counts):
        raise ValueError("run lengths are compressed ones, text that is not empty")
    if not counts:
        return []
    text = "".join(counts)
    if wrong := re.search(r"[^0-o]", text):
        raise ValueError(f"{wrong[0]!r} does not occur in run lengths")
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48  # [characters]
    ends = np.flatnonzero(bits < 32)  # [numbers], their last characters
    after = np.cumsum([len(text) for text in counts])
    if (bits[after - 1] >= 32).any():
        raise ValueError("its run lengths are cut short")
    begins = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(bits)) - np.repeat(begins, ends - begins + 1))
    if shifts.max() > 50:
        raise ValueError("a run length has more than eleven characters")
    numbers = np.add.reduceat((bits & 31) << shifts, begins) - ((bits[ends] & 16) << (shifts[ends] + 1))
    found, start = [], 0
    for end in np.searchsorted(ends, after).tolist():
        own, start = numbers[start:end], end
        for every_other in (own[1::2], own[2::2]):
            every_other.cumsum(out=every_other)
        found.append(own)
    if numbers.min() < 0:
        raise ValueError("a run length is below 0")
    return found


def annotation(id: int, image_id: int, category_id: int, rle: Rle) -> dict[str, Any]:
    """A COCO annotation; bbox is xywh in pixels, area in pixels."""
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle,
        "bbox": [float(x) for x in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
    }


def by_image(annotations: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Annotations or detections grouped by image_id, order kept."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for a in annotations:
        groups.setdefault(a["image_id"], []).append(a)
    return groups


def to_png(array: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] uint8 to the bytes of a PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: str | Path, members: Iterable[tuple[str, bytes]]) -> None:
    """An uncompressed zip (PNGs do not shrink) whose members all carry the same date."""
    with whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def write_labels(path: str | Path, maps: Iterable[tuple[str, np.ndarray]]) -> None:
    """Label maps [H, W] uint8 by image file name: 0 background, 1..K clusters, 255 void."""
    write_zip(path, ((f"{name}.png", to_png(labels)) for name, labels in maps))


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """An .npz for numpy.load, byte-stable."""

    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()

    write_zip(path, ((f"{name}.npy", npy(array)) for name, array in sorted(arrays.items())))


class Labels:
    """Label maps read from a zip by image file name; safe to hand to worker processes.

    Raises:
        InputError: no such file, not a zip, no map for an image, or a map of another size than the image.
    """

    def __init__(self, path: str | Path, folder: str = "") -> None:
        self.path, self.folder = Path(path), folder
        self._zip: zipfile.ZipFile | None = None
        self.names = frozenset(self._open().namelist())
        self._zip = None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except FileNotFoundError:
                raise InputError(f"{self.path}: no such file") from None
            except Exception as error:  # what a damaged archive raises has no end
                raise InputError(f"{self.path} is not a zip file ({in_a_line(error)}); make it again") from None
        return self._zip

    def __contains__(self, image: Image) -> bool:
        return self.member(image) in self.names

    def member(self, image: Image) -> str:
        return f"{self.folder}{image.file_name}.png"

    def __getitem__(self, image: Image) -> np.ndarray:
        """[H, W] uint8"""
        if image not in self:
            raise InputError(f"{self.path} has no {self.member(image)}; make it again from the same data/images.json")
        try:
            about = self._open().getinfo(self.member(image))
            if about.file_size > MEMBER + image.height * image.width * 2:
                raise ValueError(f"{about.file_size} bytes are no label map")
            with Pillow.open(io.BytesIO(self._open().read(about)), formats=["PNG"]) as file:
                labels = np.array(file) if file.size == image.size[::-1] else np.zeros((*file.size[::-1], 0))  # no bomb
        except Exception as error:  # whatever a damaged zip or PNG raises
            raise InputError(f"{self.path}: {self.member(image)} cannot be read ({in_a_line(error)}); make it again") from None
        if labels.shape != image.size or labels.dtype != np.uint8:
            what = f"{labels.shape[:2]}" if labels.shape[:2] != image.size else f"of {labels.dtype}, {labels.ndim} axes"
            raise InputError(f"{self.path}: {self.member(image)} is {what}, its image {image.size} (rows, columns)")
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}  # an open file does not travel to another process


def class_names(truth: str | Path) -> list[str]:
    """The classes of data/truth.zip, background first; empty where there is no truth at all."""
    try:
        with zipfile.ZipFile(truth) as archive:
            return [str(name) for name in json.loads(archive.read("classes.json"))["classes"]]
    except Exception as error:  # whatever a damaged zip raises
        raise InputError(f"{truth} cannot be read ({in_a_line(error)}); make it again with `dvc repro prepare`") from None


def boxes_xyxy(rles: Sequence[Rle]) -> np.ndarray:
    """Tight boxes [M, 4] float64 of run-length masks, pixels, right and bottom exclusive."""
    box = np.asarray(coco_mask.toBbox(list(rles)), float).reshape(-1, 4)
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1)
