"""data/images.json: the index of all readable images and their splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from unseg.core.storage import read_json

T = TypeVar("T")
FIELDS = itemgetter("id", "file_name", "height", "width", "split")


@dataclass(frozen=True)
class ImageRecord:
    """A readable photograph; height and width are those after EXIF orientation."""

    id: int
    file_name: str  # relative to data.images, with forward slashes
    height: int  # pixels
    width: int  # pixels
    split: str  # train: training only; val: evaluation only; both: training and evaluation

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def read_images(path: str | Path, *splits: str) -> list[ImageRecord]:
    """The image index, ordered by id; if splits are given, only the images of these splits."""
    images = [ImageRecord(*FIELDS(record)) for record in read_json(path)["images"]]
    return [image for image in images if not splits or image.split in splits]


def train_images(path: str | Path) -> list[ImageRecord]:
    """The images that models train on: splits train and both."""
    return read_images(path, "train", "both")


def eval_images(path: str | Path) -> list[ImageRecord]:
    """The images for evaluation: splits val and both, or all images if there are none."""
    return read_images(path, "val", "both") or read_images(path)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
