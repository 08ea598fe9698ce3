"""Instances and detections in files (unseg/core/instances.py), and lists of records that are streamed."""

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unseg.core import instances, storage
from unseg.core.console import InputError
from unseg.core.instances import Detection, Instance, Lookup, as_detection, read, read_by_image
from unseg.core.storage import JsonLines, json_line, to_json

IMAGES = [factories.image(i) for i in (2, 3, 5, 9)]
DETECTIONS = [factories.detection(np.eye(8) > 0, j / 4, i, j) for i in (2, 2, 5, 9) for j in range(2)]
RECORDS = [d.to_coco() for d in DETECTIONS]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "detections.json"


def by_image(file: Path, splits: Any = None) -> dict[int, list[Detection]]:
    return {image.id: objects for image, objects in read_by_image(file, Detection, IMAGES, splits)}


# ---- writing


@pytest.mark.parametrize("content", [RECORDS, [], [{"image_id": 2}], {"b": RECORDS, "a": [1, {}], "c": {}}, {}, {"a": []}])
def test_json_lines_are_written_as_lists_are(file: Path, content: Any) -> None:
    streamed = (
        {k: JsonLines(map(json_line, v)) if v is RECORDS else v for k, v in content.items()}
        if isinstance(content, dict)
        else content
    )
    storage.write_json(file, JsonLines(map(json_line, content)) if content is RECORDS else streamed)
    assert file.read_text() == to_json(content)
    assert json.loads(file.read_text()) == content


def test_instance_and_detection_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    x = factories.instance(mask, image_id=6, category_id=7, id=5)
    rle = {"size": [4, 5], "counts": "5220003"}  # 5 2 2, then differences
    assert x.to_coco() == {
        "id": 5,
        "image_id": 6,
        "category_id": 7,
        "segmentation": rle,
        "bbox": [1, 1, 3, 2],
        "area": 6,
        "iscrowd": 0,
    }
    result = {"image_id": 6, "category_id": 7, "segmentation": rle, "bbox": [1, 1, 3, 2], "score": 1.0}
    assert as_detection(x).to_coco() == result
    assert Instance.from_coco(x.to_coco()) == x
    assert Detection.from_coco(result) == as_detection(x)


# ---- reading


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("kind", [Instance, Detection])
def test_all_layouts_are_read(file: Path, kind: Any, indent: int | None) -> None:
    objects = [Instance(i, d.image_id, d.category_id, d.mask, d.bbox) for i, d in enumerate(DETECTIONS)]
    records = [x.to_coco() for x in objects] if kind is Instance else RECORDS
    lists: list[list[Any]] = [records, []]
    for chosen in lists:
        others = {"categories": [{"id": 1}], "images": [{"id": 1}], "info": {}}
        content = {"annotations": chosen, **others} if kind is Instance else chosen
        for text in (to_json(content), json.dumps(content, indent=indent)):
            file.write_text(text)
            assert read(file, kind, IMAGES) == ((objects if kind is Instance else DETECTIONS) if chosen else [])
        assert (instances.index_lines(file, kind.list_key) is None) == (text != to_json(content))


@given(order=st.permutations(range(8)))
def test_records_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    file = tmp_path_factory.getbasetemp() / "order.json"
    shuffled = [DETECTIONS[i] for i in order]
    expected = {i: [d for d in shuffled if d.image_id == i] for i in (2, 3, 5, 9)}
    records = [d.to_coco() for d in shuffled]
    for text in (to_json(records), json.dumps(records)):
        file.write_text(text)
        assert by_image(file) == expected
        assert by_image(file, IMAGES[1:3]) == {i: expected[i] for i in (3, 5)}
        assert list(by_image(file, IMAGES[::-1])) == [2, 3, 5, 9]


@pytest.mark.parametrize("stray", [1, 4, 10])
def test_unknown_images(file: Path, stray: int) -> None:
    storage.write_json(file, sorted([*RECORDS, RECORDS[0] | {"image_id": stray}], key=lambda r: r["image_id"]))
    with pytest.raises(InputError, match=f"detections.json: no image has the id {stray}; make it again"):
        by_image(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{]\n", "is not JSON"),
        ('[\n{"image_id": 2},\n', "is not JSON"),  # cut short
        ('[\n{"image_id": 2, x},\n]\n', "is not JSON"),
        ("[\n1\n]\n", "1 is no record"),
        ("{}", "has no list of records"),
        ('[{"id": 2}]', "a record has no image_id"),
        ('[{"image_id": "2"}]', "a record has the image_id '2'"),
        (f'[{{"image_id": {10**30}}}]', "no image has the id 1000"),
    ],
)
def test_files_that_cannot_be_read(file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        by_image(file)
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        by_image(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, "2.png: a record has the score 1.5; it must be from 0 to 1"),
        ({"score": None}, "2.png: a record has the score None"),
        ({"category_id": -1}, "2.png: a record has the category_id -1; it must be at least 0"),
        ({"category_id": True}, "2.png: a record has the category_id True"),
        ({"category_id": 2}, "2.png has cluster 2; it must be from 0 to 1"),
        ({"bbox": [0, 1, 2, 10**400]}, r"2.png: a record has the bbox"),
        ({"bbox": [0, 1, 2, float("nan")]}, r"2.png: a record has the bbox"),
        ({"bbox": [0, 1, 2]}, r"2.png: a record has the bbox \[0, 1, 2\]"),
        ({"segmentation": {"size": [8, 8]}}, "2.png: .* is no mask"),
        ({"segmentation": {"size": [8, 9], "counts": "X2"}}, r"a mask is \[8, 9\], 2.png is \[8, 8\] \(rows, columns\)"),
        ({"segmentation": {"size": [8, 8], "counts": "X2"}}, "2.png: the run lengths of a mask do not add up to 8 x 8 pixels"),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_invalid_records(file: Path, change: dict[str, Any], message: str, lines: bool) -> None:
    records = [RECORDS[0] | change, *RECORDS[1:]]
    file.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n" if lines else json.dumps(records))
    with pytest.raises(InputError, match=message):
        read(file, Detection, IMAGES, clusters=2)
    assert read(file, Detection, IMAGES, IMAGES[1:], clusters=2) == DETECTIONS[4:]  # other images


@pytest.mark.parametrize("lines", [True, False])
def test_lookup_by_image(file: Path, lines: bool) -> None:
    mixed = [*RECORDS, RECORDS[0] | {"score": 1.0, "name": "é"}]
    file.write_text(to_json(mixed) if lines else json.dumps(mixed), "utf-8")
    lookup = Lookup(file, Detection)
    assert bool(lookup.records) != lines
    for each in (lookup, pickle.loads(pickle.dumps(lookup))):
        assert [x.score for x in each[IMAGES[0]]] == [0, 0.25, 0, 0.25, 1]
        assert each[IMAGES[1]] == []
        assert each[IMAGES[2]] == DETECTIONS[4:6]
    storage.write_json(file, [])
    assert Lookup(file, Detection)[IMAGES[0]] == []


def test_memory_does_not_grow_with_the_file(file: Path) -> None:
    images = [factories.image(i) for i in range(2000)]

    def peak(count: int) -> int:
        records = (RECORDS[0] | {"image_id": i, "text": "x" * 200} for i in range(count) for _ in range(10))
        tracemalloc.start()
        storage.write_json(file, JsonLines(map(json_line, records)))
        for _ in read_by_image(file, Detection, images[:count]):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)  # what is allocated once
    small = peak(20)
    assert peak(2000) < small + 200_000 < file.stat().st_size / 10
