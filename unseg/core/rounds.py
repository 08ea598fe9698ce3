"""Rounds of the segmenter that people's labels went into, and the zip of label maps that people corrected."""

import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unseg.core import params
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps
from unseg.core.storage import encode_png, write_zip

ABOUT = "corrections.json"


def human_rounds(file: str | Path = params.FILE) -> set[str]:
    """The rounds that are trained on corrected labels (`corrections` of params.yaml), or on label maps made from such a round."""
    corrected, *others = (params.value(key, list, file) for key in ("corrections", "refine", "regroup"))
    made = [*corrected, *(item for items in others for item in items)]
    seen = {str(item.get("to")) for item in corrected}
    for _ in made:  # a chain is no longer than this
        seen |= {str(item.get("to")) for item in made if item.get("from") in seen}
    return seen


def write_corrections(path: Path, maps: Iterable[tuple[str, np.ndarray]], clustering: str) -> None:
    """Corrected label maps [H, W] uint8 by file name, and the fingerprint of the clustering that their values refer to."""
    about = json.dumps({"clustering": clustering}).encode()
    write_zip(path, [(ABOUT, about), *((f"{name}.png", encode_png(labels)) for name, labels in maps)])


def read_corrections(path: Path, images: Iterable[ImageRecord], clustering: str) -> LabelMaps:
    """The zip of `write_corrections`. Raises InputError if it is for another clustering, or has a photograph not in `images`."""
    maps = LabelMaps(path)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = json.loads(archive.read(ABOUT))["clustering"]
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path} is not what `unseg import-labels -o` writes; import the labels again") from None
    if stored != clustering:
        raise InputError(f"{path} is for another clustering, with other cluster numbers; import the labels again")
    if unknown := sorted(maps.names - {ABOUT} - {maps.member(i) for i in images}):
        raise InputError(f"{path}: there is no photograph {unknown[0].removesuffix('.png')!r}; import the labels again")
    return maps
