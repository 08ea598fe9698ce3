"""Artefact files: JSON, zips, PNGs and arrays.

Every writer is atomic (it writes a temporary file and renames it) and byte-stable: sorted keys, fixed dates, no clock,
no path of this machine.
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
from PIL import Image as Pillow

from unseg.core.console import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed onto it when the block ends well, removed when it does not.

    What a killed process left of an earlier try is removed.

    Raises:
        InputError: no room, or no right, to write.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part"):
            if not process_exists(other.name.split(".")[-2]):
                other.unlink(missing_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in NO_ROOM or error.filename in (str(part), str(path), str(path.parent)):
            raise InputError(f"{path} cannot be written: {error.strerror}; mend that and run again") from None
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def one_line(error: Exception) -> str:
    """What an exception says, in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def process_exists(process: str) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass
    return True


class JsonLines(NamedTuple):
    """A list of records that are JSON already, written as they come."""

    texts: Iterable[str]


def write_json(path: str | Path, content: Any) -> None:
    """JSON with sorted keys; lists of records get a line each, so that diffs and `head` are of use.

    content: what JSON can hold; a list of records, alone or in a mapping, may be given as Lines, so that it need never be
    in memory as a whole.
    """
    with atomic_write(path) as part, part.open("w") as file:
        file.writelines(json_pieces(content))


def to_json(content: Any) -> str:
    return "".join(json_pieces(content))


def json_line(record: Any) -> str:
    """A record as its line of JSON."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def json_pieces(content: Any) -> Iterator[str]:
    """The text of `to_json`, bit by bit."""

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
    """What a file holds; hook, as json.loads has it, makes something smaller of each mapping as it is read.

    Raises: InputError, where there is no such file or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_hook=hook)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, lists in lists in ...
        raise InputError(f"{path} is not JSON ({error}); make it again") from None


def encode_png(array: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] uint8 to the bytes of a PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: str | Path, members: Iterable[tuple[str, bytes]]) -> None:
    """An uncompressed zip (PNGs do not shrink) whose members all carry the same date."""
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
