"""Zips of label maps: one PNG an image of its original size, 0 background, 1..K clusters, 255 ignored."""

import io
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.storage import encode_png, one_line, write_zip

IGNORE_LABEL = 255  # no loss and no score at these pixels
PNG_OVERHEAD = 1 << 16  # bytes of a PNG besides its pixels, at most


class LabelMaps:
    """Label maps of a zip by image. Worker processes can have a copy.

    Raises:
        InputError: no such file, not a zip, no map for an image, or a map of another size than the image.
    """

    def __init__(self, path: str | Path, folder: str = "") -> None:
        self.path, self.folder = Path(path), folder
        self._zip: zipfile.ZipFile | None = None
        self._process = os.getpid()
        self.names = frozenset(self._open().namelist())
        self._zip = None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None or self._process != os.getpid():  # a forked worker would share the parent's place in the file
            try:
                self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
            except FileNotFoundError:
                raise InputError(f"{self.path}: no such file") from None
            except Exception as error:  # a damaged archive raises many types
                raise InputError(f"{self.path} is not a zip file ({one_line(error)}); make it again") from None
        return self._zip

    def __contains__(self, image: ImageRecord) -> bool:
        return self.member(image) in self.names

    def member(self, image: ImageRecord) -> str:
        return f"{self.folder}{image.file_name}.png"

    def __getitem__(self, image: ImageRecord) -> np.ndarray:
        """[H, W] uint8."""
        if image not in self:
            raise InputError(f"{self.path} has no {self.member(image)}; make it again from the same data/images.json")
        try:
            member = self._open().getinfo(self.member(image))
            if member.file_size > PNG_OVERHEAD + image.height * image.width * 2:
                raise ValueError(f"{member.file_size} bytes are no label map")
            with Pillow.open(io.BytesIO(self._open().read(member)), formats=["PNG"]) as file:  # a bomb is not decoded
                labels = np.array(file) if file.size == image.size[::-1] else np.zeros((*file.size[::-1], 0))
        except Exception as error:  # a damaged zip or PNG raises many types
            raise InputError(f"{self.path}: {self.member(image)} cannot be read ({one_line(error)}); make it again") from None
        if labels.shape != image.size or labels.dtype != np.uint8:
            form = f"{labels.shape[:2]}" if labels.shape[:2] != image.size else f"of {labels.dtype}, {labels.ndim} axes"
            raise InputError(f"{self.path}: {self.member(image)} is {form}, its image {image.size} (rows, columns)")
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}  # an open file cannot be pickled


def write_label_maps(path: str | Path, maps: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write label maps [H, W] uint8 with the file names of their images."""
    write_zip(path, ((f"{name}.png", encode_png(labels)) for name, labels in maps))


def class_names(truth: str | Path) -> list[str]:
    """The classes of data/truth.zip, background first; empty if there is no ground truth."""
    try:
        with zipfile.ZipFile(truth) as archive:
            return [str(name) for name in json.loads(archive.read("classes.json"))["classes"]]
    except Exception as error:  # a damaged zip raises many types
        raise InputError(f"{truth} cannot be read ({one_line(error)}); make it again with `dvc repro prepare`") from None
