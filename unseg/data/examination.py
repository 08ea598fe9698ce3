"""Which files are photographs that can be read: each candidate is decoded once, and what cannot be used gets a reason.

Names come from files that strangers wrote: none is opened that leads out of data.images.

Shapes: H rows, W columns.
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

MIN_SIDE = 8  # pixels: one patch; with less there is nothing to see
MAX_RATIO = 16  # of the sides; stages scale the shorter one, so that a strip would fill the memory (COCO has 12.5)


def examine(data: Data, found: Dataset) -> tuple[list[ImageRecord], list[Rejected]]:
    """Decode every candidate once: the index in the order of its ids, and all that is left out, by name.

    Ids are the data set's own, or 1..n in the order of the names.
    """
    root = Path(data.images).resolve()
    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    good: list[ImageRecord] = []
    bad = list(found.rejected)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside Python's lock
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata and of size: the verdict counts
        looked = track(pool.map(lambda c: look(root, c), found.candidates), "read photographs", len(found.candidates))
        for c, seen in zip(found.candidates, looked, strict=True):
            if isinstance(seen, str):
                bad.append(Rejected(c.file_name, seen))
            else:
                good.append(ImageRecord(c.id if c.id is not None else len(good) + 1, c.file_name, *seen, c.split))
    readable = [replace(r, file_name=r.file_name.encode("utf-8", "backslashreplace").decode()) for r in bad]
    return sorted(good, key=lambda i: i.id), sorted(readable, key=lambda r: r.file_name)


def look(root: Path, candidate: Candidate) -> tuple[int, int] | str:
    """(H, W) of a candidate below the resolved root, upright, or the reason why it cannot be used."""
    if reason := refuse(root, candidate.file_name):
        return reason
    path = root / candidate.file_name
    try:
        w, h = photos.open_rgb(path).size
        turned = candidate.annotated and photos.turned(path)
    except Exception as error:  # decoders of broken files raise anything
        return explain(error, path)
    if turned:
        return "turned by EXIF, while its annotation is not: save it upright"
    if candidate.size not in (None, (h, w)):
        return f"not of the annotated size: {h} x {w}, not {candidate.size} (rows, columns)"
    if min(h, w) < MIN_SIDE or max(h, w) > MAX_RATIO * min(h, w):
        return f"too thin or too small: {h} x {w} pixels; at least {MIN_SIDE}, and at most {MAX_RATIO} times as long as wide"
    return h, w


def refuse(root: Path, name: str) -> str | None:
    """Why a name below the resolved root must not be opened, if so."""
    if "\0" in name or name != name.encode("utf-8", "ignore").decode():
        return "its name is not UTF-8 text: rename it"
    try:
        found = photos.inside(root / name)
        if found and found[0].is_relative_to(root) and ".." not in PurePosixPath(name).parts:
            return refuse(root, found[0].relative_to(root).as_posix())  # the archive's; members are never unpacked
        real = (root / name).resolve()
        if not real.is_relative_to(root) or ".." in PurePosixPath(name).parts or os.path.isabs(name):
            return "leads out of data.images"
        status = real.stat()
    except FileNotFoundError:
        return "no such file"
    except (OSError, RuntimeError) as error:
        return f"cannot be opened: {getattr(error, 'strerror', None) or 'its link leads in a circle'}"
    if not stat.S_ISREG(status.st_mode):
        return "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    return None if status.st_size else "0 bytes"


def explain(error: Exception, path: Path) -> str:
    """A decoder's complaint in plain words, without a path of this machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Pillow.DecompressionBombError):
        return "a decompression bomb: more pixels than Pillow opens"
    message = " ".join(str(error).replace(str(path), path.name).split())
    if "truncated" in message.lower():
        return "truncated"
    return f"cannot be decoded: {message or type(error).__name__}"
