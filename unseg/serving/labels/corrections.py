"""Corrected labels, in memory as PNGs, and the photographs that they may be of.

Shapes: H rows, W columns of a photograph. Label maps are [H, W] uint8; their values are positions in the file's titles, 255 void.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from unseg.clustering.naming import BACKGROUND
from unseg.core import image_index, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import photos, readers
from unseg.serving.labels.source import VOID
from unseg.serving.run import Run


@dataclass
class Corrections:
    """Label maps of some photographs. The file's classes are numbered in their order, background first."""

    path: Path
    titles: list[str] = field(default_factory=lambda: [BACKGROUND])
    maps: dict[str, bytes] = field(default_factory=dict)  # by file name: a PNG, whose values are positions in titles, or 255
    notes: list[str] = field(default_factory=list)  # what was left out, for the user

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
