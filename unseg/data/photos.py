"""Open photographs upright, in RGB, and resize them, the same way in all stages. Needs no torch.

A photograph may be a member of a zip archive, with the path <archive>.zip/<member>; archives are never unpacked to disk.
"""

import io
import os
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from unseg.core.image_index import ImageRecord

VECTOR_FORMATS = ("EPS", "WMF")  # Pillow hands these to another program
ARCHIVE = ".zip"
MAX_MEMBER_BYTES = 1 << 28  # larger members are refused: they would fill the memory, and no photograph is as large
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


def split_archive(path: str | Path) -> tuple[Path, str] | None:
    """The archive and the member of a path; None if the path does not lead into an archive."""
    path = Path(path)
    for folder in path.parents:
        if folder.suffix.lower() == ARCHIVE and folder.is_file():
            return folder, path.relative_to(folder).as_posix()
    return None


@lru_cache(maxsize=8)
def open_archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open archive. Each process opens it for itself, because forked processes would share the position in the file."""
    return zipfile.ZipFile(path)


def pillow_source(path: str | Path | io.BytesIO) -> Path | io.BytesIO:
    """A file's path, or the bytes of an archive's member. Raises OSError, ValueError, BadZipFile or RuntimeError."""
    if isinstance(path, io.BytesIO):
        return path
    if (parts := split_archive(path)) is None:
        return Path(path)
    archive = open_archive(parts[0], os.getpid())
    try:
        member = archive.getinfo(parts[1])
    except KeyError:
        raise FileNotFoundError(f"{parts[0].name} has no {parts[1]}") from None
    if member.file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"a member of {member.file_size} bytes is too large for a photograph")
    return io.BytesIO(archive.read(member))


def open_rgb(path: str | Path | io.BytesIO) -> Pillow.Image:
    """A photograph as 8-bit RGB, upright.

    EXIF orientation is applied if it can be read, transparency is blended with white, and an animation gives its first frame.
    Integers of more than 8 bits are scaled from 0..65535; floats from 0..1, 0..255 or 0..65535, the narrowest range that holds
    them all; NaN is 0. Raises any error of a decoder: OSError, ValueError, SyntaxError, DecompressionBombError, ...
    """
    with Pillow.open(pillow_source(path)) as file:
        if file.format in VECTOR_FORMATS:
            raise ValueError(f"{file.format} is a vector drawing, not a photograph")
        file.load()
        return to_rgb(file)


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """As `open_rgb`, for an image in memory."""
    image = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Pillow.fromarray(to_uint8(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def to_uint8(values: np.ndarray) -> np.ndarray:
    """[H, W] of any number type to uint8; `open_rgb` gives the ranges."""
    ranges = (1.0, 255.0) if np.issubdtype(values.dtype, np.floating) else ()
    values = np.nan_to_num(values.astype(np.float64))
    top = next((t for t in ranges if values.max(initial=0) <= t), 65535.0)
    return (values.clip(0, top) * (255 / top)).round().astype(np.uint8)


def orientation(image: Pillow.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) if there is none or it cannot be read."""
    try:
        number = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged header raises any error, but the pixels may be intact
        return 1
    return number if number in range(1, 9) else 1


def is_turned(path: str | Path) -> bool:
    """Whether EXIF orientation rotates or mirrors the photograph; reads the header only."""
    with Pillow.open(pillow_source(path)) as image:
        return orientation(image) != 1


def read(root: str | Path, image: ImageRecord) -> Pillow.Image:
    """The photograph of a record; `prepare` has checked that it is readable."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # `prepare` has reported the problems of the file
        return open_rgb(Path(root) / image.file_name)


def short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(H, W) scaled so that the shorter side has `short` pixels; no side becomes 0."""
    scale = short / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(image: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    """To (H, W), bilinear, antialiased."""
    return image if image.size == size[::-1] else image.resize(size[::-1], Pillow.Resampling.BILINEAR)
