"""Photographs, tensors and artefact files (unseg/data/photos.py, engine/batching.py, core/)."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow

from unseg.core import image_index, label_maps, rle, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.engine import batching

MASKS = arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def opened(image: Pillow.Image, form: str = "PNG", **options: Any) -> np.ndarray:
    """[H, W, 3]: image, saved and opened again."""
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    got = photos.open_rgb(file)  # type: ignore[arg-type]
    assert got.mode == "RGB"
    return np.array(got)


def grey(values: Any, kind: type = np.uint8) -> Pillow.Image:
    return Pillow.fromarray(np.array(values, kind))


def rows(pixels: np.ndarray) -> list[list[int]]:
    """A grey photograph's values, after a check that it is grey."""
    assert (pixels == pixels[..., :1]).all()
    values: list[list[int]] = pixels[..., 0].tolist()
    return values


# ---------------------------------------------------------------- opening


def test_colour_is_kept_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(opened(Pillow.fromarray(pixels)), pixels)


def test_grey_and_one_bit() -> None:
    assert rows(opened(grey([[0, 7], [128, 255]]))) == [[0, 7], [128, 255]]
    assert rows(opened(grey([[0, 255], [255, 0]]).convert("1"))) == [[0, 255], [255, 0]]


def test_sixteen_bits_come_to_eight() -> None:
    assert rows(opened(grey([[0, 257], [128 * 257, 65535]], np.uint16))) == [[0, 1], [128, 255]]
    assert rows(opened(grey([[0, 257], [65535, 99999]], np.int32), "TIFF")) == [[0, 1], [255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0.5, 1]], [[0, 128, 255]]),
        ([[0, 1.5, 255]], [[0, 2, 255]]),
        ([[0, 257, 65535]], [[0, 1, 255]]),
        ([[-3, np.nan, 1]], [[0, 0, 255]]),
        ([[0, np.inf, 257]], [[0, 255, 1]]),
        ([[0, 0, 0]], [[0, 0, 0]]),
    ],
)
def test_floats_are_taken_as_the_narrowest_range_that_holds_them(values: Any, expected: Any) -> None:
    assert rows(opened(grey(values, np.float32), "TIFF")) == expected


def test_what_is_transparent_is_white() -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert opened(Pillow.fromarray(pixels)).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert rows(opened(Pillow.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA"))) == [[9, 255]]
    palette = grey([[0, 1, 2]]).convert("P")
    palette.putpalette([1, 1, 1, 2, 2, 2, 3, 3, 3])
    palette.putdata([0, 1, 2])
    assert rows(opened(palette, transparency=1)) == [[1, 255, 3]]
    assert rows(opened(palette, transparency=b"\xff\x00\xff")) == [[1, 255, 3]]
    assert rows(opened(grey([[5, 6]]), transparency=5)) == [[255, 6]]


def test_cmyk_is_ink_on_white() -> None:
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    assert opened(Pillow.fromarray(ink, "CMYK"), "TIFF").tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]


def test_the_first_frame_of_an_animation() -> None:
    frames = [grey([[v, v]]) for v in (50, 100, 150)]
    assert rows(opened(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [[50, 50]]


UPRIGHT = {  # what a viewer shows of [[1, 2, 3], [4, 5, 6]] with the EXIF orientation
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
    9: [[1, 2, 3], [4, 5, 6]],  # no such orientation
}


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(number: int, kind: type, tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[photos.ORIENTATION] = number
    scale = 257 if kind is np.uint16 else 1
    stored = grey(np.array(UPRIGHT[1]) * scale, kind)
    assert rows(opened(stored, exif=exif)) == UPRIGHT[number]
    stored.save(tmp_path / "a.png", exif=exif)
    assert photos.turned(tmp_path / "a.png") == (number in range(2, 9))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_a_damaged_header_leaves_the_photograph_as_stored(exif: bytes) -> None:
    assert opened(grey(np.zeros((4, 6))), "JPEG", exif=exif).shape == (4, 6, 3)


def test_what_is_no_photograph_raises(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    for content in (b"", b"text", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"):
        file.write_bytes(content)
        with pytest.raises((OSError, ValueError), match=r"cannot identify|draws"):
            photos.open_rgb(file)


def test_read_opens_the_photograph_of_a_record_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    grey(np.full((40, 40), 3)).save(tmp_path / "sub/a b.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here on, and warnings are errors here
    assert photos.read(tmp_path, ImageRecord(1, "sub/a b.png", 40, 40, "train")).size == (40, 40)


# ---------------------------------------------------------------- sizes and tensors


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((375, 500), 640, (640, 853)), ((500, 375), 96, (128, 96)), ((64, 64), 64, (64, 64)), ((1000, 10), 1, (100, 1))],
)
def test_short_side_by_hand(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert photos.short_side(size, short) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(1, 800))
def test_short_side_keeps_the_aspect(h: int, w: int, short: int) -> None:
    a, b = photos.short_side((h, w), short)
    assert min(a, b) == short
    assert abs(a * w - b * h) <= max(h, w) / 2 + 1e-6  # half a pixel of rounding


def test_resize_takes_rows_first_and_averages() -> None:
    image = Pillow.fromarray(np.tile(np.array([[[0] * 3], [[200] * 3]], np.uint8), (2, 6, 1)))  # rows of 0, 200, 0, 200
    assert photos.resize(image, (4, 6)) is image
    small = np.array(photos.resize(image, (1, 3)))
    assert small.shape == (1, 3, 3)
    assert abs(small.astype(int) - 100).max() <= 1


def test_to_tensor_normalises_by_channel() -> None:
    pixels = np.array([[[0, 255, 51]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    for source in (pixels, Pillow.fromarray(pixels)):
        tensor = batching.to_tensor(source)
        assert tensor.shape == (3, 1, 1)
        torch.testing.assert_close(tensor.flatten(), torch.tensor(expected))


def test_pad_to_adds_at_the_bottom_and_right() -> None:
    tensor = torch.ones(3, 5, 7)
    padded = batching.pad_to(tensor, 4)
    assert padded.shape == (3, 8, 8)
    assert padded[:, :5, :7].eq(1).all()
    assert padded.sum() == tensor.sum()
    assert batching.pad_to(tensor, 1).equal(tensor)


def load(item: tuple[int, int, int]) -> torch.Tensor:
    return torch.full((3, item[1], item[2]), float(item[0]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=20), st.integers(1, 60))
def test_batches_hold_every_item_once_among_its_like(sizes: list[tuple[int, int]], pixels: int) -> None:
    items = [(i, h, w) for i, (h, w) in enumerate(sizes)]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEG_WORKERS", "0")
        for members, batch in batching.batches_by_shape(items, lambda i: i[1:], load, pixels):
            assert batch.shape == (len(members), 3, *members[0][1:])
            assert batch[:, 0, 0, 0].tolist() == [m[0] for m in members]
            assert len(members) == 1 or len(members) * members[0][1] * members[0][2] <= pixels
            seen += members
    assert sorted(seen) == items


# ---------------------------------------------------------------- masks


def test_run_lengths_by_hand() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = True  # two pixels down the second column: 4 off, 2 on, 6 off
    encoded = rle.encode(mask)
    assert encoded == {"size": [3, 4], "counts": "426"}
    expected = {"bbox": [1.0, 1.0, 1.0, 2.0], "area": 2, "iscrowd": 0, "segmentation": encoded}
    assert rle.coco_annotation(5, 6, 7, encoded) == {"id": 5, "image_id": 6, "category_id": 7, **expected}
    assert rle.boxes_xyxy([encoded, encoded]).tolist() == [[1, 1, 2, 3]] * 2


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_masks_come_back(mask: np.ndarray) -> None:
    encoded = rle.encode(mask)
    np.testing.assert_array_equal(rle.decode(encoded), mask)
    assert encoded["size"] == list(mask.shape)
    json.dumps(encoded)
    several = rle.encode_all(np.stack([mask, ~mask]))
    assert several == [encoded, rle.encode(~mask)]
    box, (y, x) = rle.boxes_xyxy([encoded])[0], np.nonzero(mask)
    assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if mask.any() else [0, 0, 0, 0])


def test_no_masks_at_all() -> None:
    assert rle.encode_all(np.zeros((0, 4, 5), bool)) == []
    assert rle.boxes_xyxy([]).shape == (0, 4)


def test_annotations_by_image_keep_their_order() -> None:
    given = [{"image_id": i, "id": n} for n, i in enumerate((2, 1, 2))]
    assert {k: [a["id"] for a in v] for k, v in rle.group_by_image(given).items()} == {2: [0, 2], 1: [1]}


# ---------------------------------------------------------------- JSON


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


def test_reading_json_names_what_is_wrong(tmp_path: Path) -> None:
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


def test_what_is_learned_from_and_what_is_judged(tmp_path: Path) -> None:
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


# ---------------------------------------------------------------- zips


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


def test_labels_say_what_is_missing(tmp_path: Path) -> None:
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
