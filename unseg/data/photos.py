"""Photographs as files: one way of opening, uprighting and resizing them for all stages. Needs no torch.

A photograph may be a member of a zip archive: the path <archive>.zip/<member>. Nothing is ever unpacked to disk.

Shapes: H rows, W columns.
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

DRAWINGS = ("EPS", "WMF")  # formats that Pillow hands to another program to be drawn
ARCHIVE = ".zip"
LARGEST = 1 << 28  # bytes of a member: more than any photograph, less than what would fill the memory
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


def inside(path: str | Path) -> tuple[Path, str] | None:
    """The archive and the member that a path stands for; None for a path of a file of its own."""
    path = Path(path)
    for folder in path.parents:
        if folder.suffix.lower() == ARCHIVE and folder.is_file():
            return folder, path.relative_to(folder).as_posix()
    return None


@lru_cache(maxsize=8)
def archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open archive; each process has its own, for a fork shares the place up to which a file was read."""
    return zipfile.ZipFile(path)


def source(path: str | Path | io.BytesIO) -> Path | io.BytesIO:
    """What Pillow can open: the path of a file, the bytes of a member, or bytes as they are.

    Raises:
        OSError, ValueError, zipfile.BadZipFile, RuntimeError (it is encrypted): no such member, or none that can be read.
    """
    if isinstance(path, io.BytesIO):
        return path
    if (found := inside(path)) is None:
        return Path(path)
    own = archive(found[0], os.getpid())
    try:
        about = own.getinfo(found[1])
    except KeyError:
        raise FileNotFoundError(f"{found[0].name} has no {found[1]}") from None
    if about.file_size > LARGEST:
        raise ValueError(f"{about.file_size} bytes in an archive are no photograph")
    return io.BytesIO(own.read(about))


def open_rgb(path: str | Path | io.BytesIO) -> Pillow.Image:
    """Any photograph as 8-bit RGB, upright.

    EXIF orientation is applied where it can be read, grey and CMYK are converted, transparency is laid on
    white, integers of more than 8 bits are taken as 0..65535, floats as 0..1, 0..255 or 0..65535 (the
    narrowest that holds them all, NaN as 0), of an animation the first frame is taken.

    Raises:
        Pillow.UnidentifiedImageError, Pillow.DecompressionBombError, OSError, or whatever a decoder lets
        through (ValueError, SyntaxError, struct.error, ...): not an image that can be read.
    """
    with Pillow.open(source(path)) as file:
        if file.format in DRAWINGS:
            raise ValueError(f"{file.format} is a program that draws, not a photograph")
        file.load()
        return to_rgb(file)


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """An image in memory as `open_rgb` gives it."""
    image = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Pillow.fromarray(to_bytes(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def to_bytes(values: np.ndarray) -> np.ndarray:
    """[H, W] of any number to uint8; see open_rgb for what counts as white."""
    narrow = (1.0, 255.0) if np.issubdtype(values.dtype, np.floating) else ()
    values = np.nan_to_num(values.astype(np.float64))
    top = next((t for t in narrow if values.max(initial=0) <= t), 65535.0)
    return (values.clip(0, top) * (255 / top)).round().astype(np.uint8)


def orientation(image: Pillow.Image) -> int:
    """EXIF's number, 1 to 8; 1 (as it is stored) where there is none or it cannot be read."""
    try:
        number = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged header raises anything; the pixels may be whole
        return 1
    return number if number in range(1, 9) else 1


def turned(path: str | Path) -> bool:
    """Whether EXIF turns or mirrors the photograph, told from its header."""
    with Pillow.open(source(path)) as image:
        return orientation(image) != 1


def read(root: str | Path, image: ImageRecord) -> Pillow.Image:
    """The photograph of a record; `prepare` has made sure that it can be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # `prepare` has said what there was to say
        return open_rgb(Path(root) / image.file_name)


def short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(H, W) with the shorter side at `short` pixels, aspect kept; no side becomes 0."""
    scale = short / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(image: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    """To (H, W), bilinear, antialiased."""
    return image if image.size == size[::-1] else image.resize(size[::-1], Pillow.Resampling.BILINEAR)
