"""Lists of records that are streamed (unseg/core/streams.py)."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from unseg.core import rle, storage, streams
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.storage import JsonLines, json_line, to_json

IMAGES = [ImageRecord(i, f"{i}.png", 8, 8, "train") for i in (2, 3, 5, 9)]
FOUND = [{"image_id": i, "score": j / 4} for i in (2, 2, 5, 9) for j in range(2)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "found.json"


def grouped(file: Path, key: str | None = None, images: list[ImageRecord] = IMAGES) -> dict[int, list[dict[str, Any]]]:
    known = {i.id for i in IMAGES}
    return {i.id: own for i, own in streams.by_image(file, streams.in_order(file, key), images, known)}


@pytest.mark.parametrize("content", [FOUND, [], [{"image_id": 2}], {"b": FOUND, "a": [1, {}], "c": {}}, {}, {"a": []}])
def test_lines_are_written_as_lists_are(file: Path, content: Any) -> None:
    streamed = (
        {k: JsonLines(map(json_line, v)) if v is FOUND else v for k, v in content.items()}
        if isinstance(content, dict)
        else content
    )
    storage.write_json(file, JsonLines(map(json_line, content)) if content is FOUND else streamed)
    assert file.read_text() == to_json(content)
    assert json.loads(file.read_text()) == content


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", [None, "annotations"])
def test_each_layout_is_read(file: Path, key: str | None, indent: int | None) -> None:
    content = {"annotations": FOUND, "images": [{"id": 1}]} if key else FOUND
    for text in (to_json(content), json.dumps(content, indent=indent)):
        file.write_text(text)
        assert list(streams.stream(file, key)) == FOUND
    file.write_text(to_json({"annotations": []} if key else []))
    assert list(streams.stream(file, key)) == []


def test_images_and_their_records(file: Path) -> None:
    for found in (FOUND, FOUND[::-1], FOUND[4:] + FOUND[:4]):  # in any order
        storage.write_json(file, found)
        own = grouped(file)
        assert {i: len(f) for i, f in own.items()} == {2: 4, 3: 0, 5: 2, 9: 2}
        file.write_text(json.dumps(found))  # in one line
        assert grouped(file) == own
        assert all(f["image_id"] == i for i, each in own.items() for f in each)
        assert own[5] == [f for f in found if f["image_id"] == 5]
        assert list(grouped(file, images=IMAGES[1:3])) == [3, 5]


@pytest.mark.parametrize("stray", [1, 4, 10])
def test_records_of_no_image(file: Path, stray: int) -> None:
    storage.write_json(file, sorted([*FOUND, {"image_id": stray}], key=lambda r: r["image_id"]))
    with pytest.raises(InputError, match=f"found.json: no image has the id {stray}; make it again"):
        grouped(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{]\n", "is not JSON"),
        ('[\n{"image_id": 2},\n', "is cut short"),
        ("[\n1\n]\n", "1 is no record"),
        ("{}", "has no list of records"),
        ('[{"id": 2}]', "a record has no image_id"),
        ('[{"image_id": "2"}]', "a record has no image_id"),
    ],
)
def test_what_is_no_such_file(file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        grouped(file)
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        grouped(file)


@pytest.mark.parametrize("lines", [True, False])
def test_looked_up_by_image(file: Path, lines: bool) -> None:
    mixed = [*FOUND, {"image_id": 2, "score": 9, "name": "é"}, {"image_id": 7, "score": 1}]
    file.write_text(to_json(mixed) if lines else json.dumps(mixed), "utf-8")
    found = streams.Lookup(file)
    assert bool(found.places) == lines
    want = rle.group_by_image(mixed)
    assert {i: found.get(i, []) for i in range(12)} == {i: want.get(i, []) for i in range(12)}
    storage.write_json(file, [])
    assert streams.Lookup(file).get(2, []) == []
    with pytest.raises(InputError, match="no such file"):
        streams.Lookup(file.with_name("none"))
    file.write_text("[\n{]\n")
    with pytest.raises(InputError, match="is not JSON"):
        streams.Lookup(file)


def test_memory_does_not_grow_with_the_file(file: Path) -> None:
    images = [ImageRecord(i, f"{i}.png", 8, 8, "train") for i in range(4000)]

    def peak(count: int) -> int:
        each = ({"image_id": i, "score": j / 10, "text": "x" * 200} for i in range(count) for j in range(10))
        tracemalloc.start()
        storage.write_json(file, JsonLines(map(json_line, each)))
        for _ in streams.by_image(file, streams.in_order(file), images[:count], range(count)):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is made once
    small = peak(20)
    assert peak(2000) < small + 200_000 < file.stat().st_size / 10
