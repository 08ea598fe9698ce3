"""Artefact files: JSON, zips, PNGs and arrays.

All writers are atomic (they write a temporary file and rename it) and byte-stable: sorted keys, fixed dates, no clock, no
path of this machine.
"""

import errno
import glob
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image as Pillow

from unseg.core.console import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CANNOT_WRITE = (*DISK_FULL, errno.EFBIG, errno.EROFS)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` after the block, or remove it after an exception.

    Temporary files of killed processes are removed.

    Raises:
        InputError: no room or no right to write.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part"):
            with suppress(ValueError, OverflowError):  # not a process id
                if not psutil.pid_exists(int(other.name.split(".")[-2])):
                    other.unlink(missing_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in CANNOT_WRITE or error.filename in (str(part), str(path), str(path.parent)):
            remedy = "free space" if error.errno in DISK_FULL else "correct that"
            raise InputError(f"{path} cannot be written: {error.strerror}; {remedy} and run again") from None
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def one_line(error: Exception) -> str:
    """The message of an exception in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class JsonLines(NamedTuple):
    """A list of records that are JSON text already, so that they need never be in memory together."""

    texts: Iterable[str]


def write_json(path: str | Path, content: Any) -> None:
    """JSON with sorted keys. A list of records, alone or in a mapping, has one line a record; it may be JsonLines."""
    with atomic_write(path) as part, part.open("w") as file:
        file.writelines(json_pieces(content))


def to_json(content: Any) -> str:
    return "".join(json_pieces(content))


def json_line(record: Any) -> str:
    """A record as one line of JSON."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def json_pieces(content: Any) -> Iterator[str]:
    """The text of `to_json` in pieces."""

    def lines(x: Any) -> Iterator[str]:
        if isinstance(x, list) and x and isinstance(x[0], dict):
            x = JsonLines(map(json_line, x))
        if not isinstance(x, JsonLines):
            yield json_line(x)
            return
        opening = "["
        for text in x.texts:
            yield f"{opening}\n{text}"
            opening = ","
        yield "[]" if opening == "[" else "\n]"

    if isinstance(content, dict):
        opening = "{\n"
        for key in sorted(content):
            yield f"{opening}{json_line(key)}: "
            yield from lines(content[key])
            opening = ",\n"
        yield "\n}\n" if content else "{\n\n}\n"
        return
    yield from lines(content)
    yield "\n"


def read_json(path: str | Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file; hook, as in json.loads, replaces each mapping.

    Raises:
        InputError: no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_hook=hook)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of too many digits, too deeply nested
        raise InputError(f"{path} is not JSON ({error}); make it again") from None


def encode_png(array: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] uint8 to a PNG file's bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(content: bytes) -> np.ndarray:
    """The inverse of `encode_png`."""
    return np.asarray(Pillow.open(io.BytesIO(content)))


def write_zip(path: str | Path, members: Iterable[tuple[str, bytes]]) -> None:
    """An uncompressed zip (PNGs do not shrink); all members have the same date."""
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """An .npz for numpy.load, byte-stable."""

    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()

    write_zip(path, ((f"{name}.npy", npy(array)) for name, array in sorted(arrays.items())))
