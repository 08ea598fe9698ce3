"""Masks, artefact files, the image index and label maps (unseg/core/: masks, storage, image_index, label_maps)."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow

from unseg.core import image_index, label_maps, masks, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord

BITMAPS = arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))


# ---- masks


def test_run_lengths_by_hand() -> None:
    pixels = np.zeros((3, 4), bool)
    pixels[1:, 1] = True  # two pixels down the second column: 4 off, 2 on, 6 off
    mask = masks.encode(pixels)
    assert (mask.size, mask.counts, mask.bbox, mask.area) == ((3, 4), "426", (1, 1, 1, 2), 2)
    expected = {"bbox": [1.0, 1.0, 1.0, 2.0], "area": 2, "iscrowd": 0, "segmentation": {"size": [3, 4], "counts": "426"}}
    assert factories.instance(pixels, 6, 7, 5).to_coco() == {"id": 5, "image_id": 6, "category_id": 7, **expected}
    assert masks.boxes_xyxy([mask, mask]).tolist() == [[1, 1, 2, 3]] * 2


@settings(max_examples=40, deadline=None)
@given(BITMAPS)
def test_masks_come_back(pixels: np.ndarray) -> None:
    mask = masks.encode(pixels)
    np.testing.assert_array_equal(mask.decode(), pixels)
    assert masks.from_rle(json.loads(json.dumps(mask.rle))) == mask
    assert masks.encode_all(np.stack([pixels, ~pixels])) == [mask, masks.encode(~pixels)]
    box, (y, x) = masks.boxes_xyxy([mask])[0], np.nonzero(pixels)
    assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if pixels.any() else [0, 0, 0, 0])


def test_no_masks_at_all() -> None:
    assert masks.encode_all(np.zeros((0, 4, 5), bool)) == []
    assert masks.boxes_xyxy([]).shape == (0, 4)


# ---- JSON


def test_json_is_sorted_and_has_a_record_a_line(tmp_path: Path) -> None:
    file = tmp_path / "new/a.json"
    storage.write_json(file, {"b": [{"y": 1, "x": "ü\udcff"}, {"x": 2}], "a": [1, 2], "c": []})
    text = file.read_text()
    assert text == '{\n"a": [1, 2],\n"b": [\n{"x": "\\u00fc\\udcff", "y": 1},\n{"x": 2}\n],\n"c": []\n}\n'
    assert storage.read_json(file)["b"][0]["x"] == "ü\udcff"
    storage.write_json(file, [{"b": 1, "a": 2}])
    assert file.read_text() == '[\n{"a": 2, "b": 1}\n]\n'


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    storage.write_json(file, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(file, [float("nan")])

    def members() -> Any:
        yield "a", b"a"
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        storage.write_zip(file, members())
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "[1]\n"


def test_errors_of_reading_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a\.json: no such file"):
        storage.read_json(file)
    for content in (b"{", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json is not JSON"):
            storage.read_json(file)
    with pytest.raises(InputError, match=r"cannot be read"):
        storage.read_json(tmp_path)
    file.write_bytes('\ufeff{"ü": 1}'.encode())  # as Windows tools write it
    assert storage.read_json(file) == {"ü": 1}


def test_train_and_eval_images(tmp_path: Path) -> None:
    file = tmp_path / "images.json"

    def index(*splits: str) -> None:
        given = [{"id": i, "file_name": f"{i}.png", "height": 2, "width": 3, "split": s} for i, s in enumerate(splits)]
        storage.write_json(file, {"images": [{**r, "more": 1} for r in given]})

    index("train", "val", "both")
    assert [i.id for i in image_index.read_images(file)] == [0, 1, 2]
    assert [i.id for i in image_index.train_images(file)] == [0, 2]
    assert [i.id for i in image_index.eval_images(file)] == [1, 2]
    assert image_index.read_images(file)[0].size == (2, 3)
    index("train", "train")
    assert [i.id for i in image_index.eval_images(file)] == [0, 1]


# ---- zips


ONE, TWO = ImageRecord(1, "a/ü b.jpg", 2, 3, "train"), ImageRecord(2, "c.png", 4, 4, "val")


def test_label_maps_come_back_and_the_bytes_are_stable(tmp_path: Path) -> None:
    maps = {ONE: np.array([[0, 1, 255], [7, 8, 9]], np.uint8), TWO: np.arange(16, dtype=np.uint8).reshape(4, 4)}
    for name in ("one.zip", "two.zip"):
        label_maps.write_label_maps(tmp_path / name, ((i.file_name, m) for i, m in maps.items()))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a/ü b.jpg.png", "c.png.png"]
        assert {(m.date_time, m.compress_type) for m in archive.infolist()} == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}
    labels = label_maps.LabelMaps(tmp_path / "one.zip")
    for _ in range(2):
        for image, values in maps.items():
            assert image in labels
            np.testing.assert_array_equal(labels[image], values)
        labels = pickle.loads(pickle.dumps(labels))  # with its file open, as a loader's worker gets it


def test_label_maps_report_missing_and_wrong_members(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.zip: no such file"):
        label_maps.LabelMaps(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_text("text")
    with pytest.raises(InputError, match=r"x\.zip is not a zip file"):
        label_maps.LabelMaps(tmp_path / "x.zip")
    storage.write_zip(tmp_path / "x.zip", [("in/c.png.png", storage.encode_png(np.zeros((4, 5), np.uint8)))])
    labels = label_maps.LabelMaps(tmp_path / "x.zip", "in/")
    assert TWO in labels
    assert ONE not in labels
    with pytest.raises(InputError, match=r"has no in/a/ü b\.jpg\.png"):
        labels[ONE]
    with pytest.raises(InputError, match=r"in/c\.png\.png is \(4, 5\), its image \(4, 4\)"):
        labels[TWO]
    assert TWO not in label_maps.LabelMaps(tmp_path / "x.zip")


def test_png_keeps_colour_and_grey() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    for array in (pixels, pixels[..., 0]):
        np.testing.assert_array_equal(np.array(Pillow.open(io.BytesIO(storage.encode_png(array)))), array)
