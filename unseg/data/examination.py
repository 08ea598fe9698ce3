"""Decode each candidate once, for the index of the usable photographs and a list of the others with the reason.

File names are not trusted: no file outside data.images is opened.
"""

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from unseg.core.console import track
from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.data.readers import Candidate, Data, Dataset, Rejected

MIN_SIDE = 8  # pixels: one patch
MAX_RATIO = 16  # of the sides; stages scale the shorter one, so a strip would fill the memory (COCO has up to 12.5)


def examine(data: Data, dataset: Dataset) -> tuple[list[ImageRecord], list[Rejected]]:
    """The index by id, and the rejected files by name. Ids are the data set's, or 1..n in the order of the names."""
    root, candidates = Path(data.images).resolve(), dataset.candidates
    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    index: list[ImageRecord] = []
    rejected = list(dataset.rejected)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside Python's lock
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata, large sizes: the results below report what matters
        results = track(pool.map(lambda c: examine_file(root, c), candidates), "read photographs", len(candidates))
        for c, result in zip(candidates, results, strict=True):
            if isinstance(result, str):
                rejected.append(Rejected(c.file_name, result))
            else:
                index.append(ImageRecord(c.id if c.id is not None else len(index) + 1, c.file_name, *result, c.split))
    printable = [replace(r, file_name=r.file_name.encode("utf-8", "backslashreplace").decode()) for r in rejected]
    return sorted(index, key=lambda i: i.id), sorted(printable, key=lambda r: r.file_name)


def examine_file(root: Path, candidate: Candidate) -> tuple[int, int] | str:
    """(H, W) of an upright candidate below the resolved root, or the reason why it cannot be used."""
    if reason := refuse(root, candidate.file_name):
        return reason
    path = root / candidate.file_name
    try:
        w, h = photos.open_rgb(path).size
        if candidate.annotated and photos.is_turned(path):
            return "turned by EXIF, but its annotation is not: save it upright"
    except Exception as error:  # decoders of broken files raise any error
        return explain(error, path)
    if candidate.size not in (None, (h, w)):
        return f"not of the annotated size: {h} x {w}, not {candidate.size} (rows, columns)"
    return odd_sides(h, w) or (h, w)


def odd_sides(h: int, w: int) -> str | None:
    """The reason why a photograph of h x w pixels cannot be used, or None."""
    if min(h, w) < MIN_SIDE or max(h, w) > MAX_RATIO * min(h, w):
        return f"too thin or too small: {h} x {w} pixels; at least {MIN_SIDE}, and at most {MAX_RATIO} times as long as wide"
    return None


def refuse(root: Path, name: str) -> str | None:
    """The reason why a file below the resolved root must not be opened, or None."""
    if "\0" in name or name != name.encode("utf-8", "ignore").decode():
        return "its name is not UTF-8 text: rename it"
    try:
        parts = photos.split_archive(root / name)
        if parts and parts[0].is_relative_to(root) and ".." not in PurePosixPath(name).parts:
            return refuse(
                root, parts[0].relative_to(root).as_posix()
            )  # a member cannot lead outside, because it is never unpacked
        real = (root / name).resolve()
        if not real.is_relative_to(root) or ".." in PurePosixPath(name).parts or os.path.isabs(name):
            return "leads out of data.images"
        status = real.stat()
    except FileNotFoundError:
        return "no such file"
    except (OSError, RuntimeError) as error:
        return f"cannot be opened: {getattr(error, 'strerror', None) or 'a circle of links'}"
    if not stat.S_ISREG(status.st_mode):
        return "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    return None if status.st_size else "0 bytes"


def explain(error: Exception, path: Path) -> str:
    """A decoder's error as a reason, without a path of this machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Pillow.DecompressionBombError):
        return "a decompression bomb: more pixels than Pillow opens"
    message = " ".join(str(error).replace(str(path), path.name).split())
    if "truncated" in message.lower():
        return "truncated"
    return f"cannot be decoded: {message or type(error).__name__}"
