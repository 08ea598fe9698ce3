"""Lists of records too long for memory (five million detections): read line by line, an image at a time.

`storage.write_json` gives each record of a list a line of its own, and stages write records in the order of their images, so
that what is COCO's JSON to others can be streamed here. JSON that is laid out otherwise is read whole.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.storage import read_json

Record = dict[str, Any]
IMAGE = re.compile(r'"image_id": (\d+)[,}]')  # in a line of a record
AGAIN = "make it again from the same data/images.json"


def stream(path: str | Path, key: str | None = None) -> Iterator[Record]:
    """The records of a file's list, or of the list at `key`, one at a time.

    Raises:
        InputError: no such file, not JSON, or no such list of records.
    """
    opening = "[" if key is None else f"{json.dumps(key)}: ["
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            if not any(text.rstrip("\n") == opening for text in file):
                yield from listed(path, key)
                return
            first = True
            for text in file:
                if text.startswith("]"):
                    return
                if first and not text.rstrip().endswith(("}", "},")):  # a record of several lines
                    yield from listed(path, key)
                    return
                first = False
                yield record(path, json.loads(text.rstrip().removesuffix(",")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); make it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    raise InputError(f"{path} is cut short; make it again")


def in_order(path: str | Path, key: str | None = None) -> Iterator[Record]:
    """As `stream`, by rising image_id; a file in another order is read whole."""
    last = -1
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for text in file:
                if (found := IMAGE.search(text)) and (int(found[1]) < last or not text.startswith("{")):
                    return iter(sorted(stream(path, key), key=lambda r: number(path, r)))
                last = int(found[1]) if found else -1 if text.startswith("]") else last
    except (OSError, UnicodeDecodeError):
        pass  # `stream` says it
    return stream(path, key)


def number(path: str | Path, r: Record) -> int:
    """The record's image_id."""
    if not isinstance(r.get("image_id"), int):
        raise InputError(f"{path}: a record has no image_id; {AGAIN}")
    return int(r["image_id"])


def listed(path: str | Path, key: str | None) -> Iterator[Record]:
    """As `stream`, of a file in any layout."""
    content = read_json(path)
    found = content.get(key) if isinstance(content, dict) else content if key is None else None
    if not isinstance(found, list):
        raise InputError(f"{path} has no list of records{f' {key}' if key else ''}; make it again")
    yield from (record(path, r) for r in found)


def record(path: str | Path, content: Any) -> Record:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {str(content)[:40]} is no record; make it again")
    return content


def by_image(
    path: str | Path, records: Iterable[Record], images: Iterable[ImageRecord], known: Collection[int]
) -> Iterator[tuple[ImageRecord, list[Record]]]:
    """Each image and its records, which both come in the order of image ids; known are the ids of all images.

    Raises:
        InputError: records out of that order, or of an image that is not known.
    """

    groups: Iterator[tuple[int | None, Iterator[Record]]] = groupby(records, key=lambda r: number(path, r))
    at, own = next(groups, (None, iter(())))

    def check(before: int | None) -> None:
        if at is not None and at not in known:
            raise InputError(f"{path}: no image has the id {at}; {AGAIN}")
        if before is not None and at is not None and at <= before:
            raise InputError(f"{path}: image {at} comes after image {before}; {AGAIN}")

    check(None)
    for image in images:
        while at is not None and at < image.id:
            before, (at, own) = at, next(groups, (None, iter(())))
            check(before)
        yield image, list(own) if at == image.id else []
    while at is not None:  # what is left is looked at, too
        before, (at, own) = at, next(groups, (None, iter(())))
        check(before)


class Lookup:
    """The records of a file's list by image, read from it when they are asked for.

    Raises:
        InputError: as `stream`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.held: dict[int, list[Record]] = {}  # of a file that is laid out otherwise
        self.places: dict[int, list[tuple[int, int]]] = {}  # stretches of lines: where the first begins, and how many
        last, at = None, 0
        try:
            with Path(path).open("rb") as file:
                for text in file:
                    if text.startswith(b"{") and (found := IMAGE.search(text.decode("utf-8", "replace"))):
                        image = int(found[1])
                        own = self.places.setdefault(image, [])
                        if image == last:
                            own[-1] = own[-1][0], own[-1][1] + 1
                        else:
                            own.append((at, 1))
                        last = image
                    elif text.rstrip() not in (b"[", b"]", b"[]"):
                        break
                    at += len(text)
                else:
                    return
        except OSError:
            pass  # `stream` says it
        self.places = {}
        for r in stream(path):
            self.held.setdefault(number(path, r), []).append(r)

    def get(self, image: int, default: list[Record]) -> list[Record]:
        """The records of an image, in their order in the file; the default where there is none."""
        if image not in self.places:
            return self.held.get(image, default)
        found = []
        with Path(self.path).open("rb") as file:
            for at, lines in self.places[image]:
                file.seek(at)
                found += [record(self.path, json.loads(file.readline().rstrip().removesuffix(b","))) for _ in range(lines)]
        return found
