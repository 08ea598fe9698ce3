"""data/images.json: the index of all readable images, and which of them training and evaluation see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unseg.core.storage import read_json

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRecord:
    """A readable photograph, EXIF orientation applied."""

    id: int
    file_name: str  # relative to data.images, with forward slashes
    height: int  # pixels
    width: int  # pixels
    split: str  # train: learned from; val: held out for evaluation; both: learned from and evaluated

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def read_images(path: str | Path, *splits: str) -> list[ImageRecord]:
    """The index of images, in the order of their ids; with splits given, those images only."""
    images = [
        ImageRecord(**{k: r[k] for k in ("id", "file_name", "height", "width", "split")}) for r in read_json(path)["images"]
    ]
    return [i for i in images if not splits or i.split in splits]


def train_images(path: str | Path) -> list[ImageRecord]:
    """The images that training may see."""
    return read_images(path, "train", "both")


def eval_images(path: str | Path) -> list[ImageRecord]:
    """The images on which the model is judged: the held-out ones, or all where none is held out."""
    return read_images(path, "val", "both") or read_images(path)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
