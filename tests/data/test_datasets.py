"""stages/prepare.py, and unseg/data: readers.py, coco.py, examination.py, truth.py."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import factories
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow
from pycocotools.coco import COCO

from stages import prepare
from unseg.core import masks, optional
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord, read_images
from unseg.core.instances import Instance
from unseg.core.label_maps import LabelMaps
from unseg.core.storage import write_json
from unseg.data import coco, demo, examination, photos, truth
from unseg.data.readers import Data

ROOT = Path(__file__).parents[2]
REAL = ROOT / ".." / "shared" / "data"
VOC = {"kind": "voc", "root": "raw", "images": "raw/JPEGImages", "train": "train.txt", "val": None, "annotations": None}
COCO_ = {"kind": "coco", "root": "raw", "images": "raw/images", "train": "t.json", "val": None, "annotations": None}
FOLDER = {"kind": "folder", "root": "raw", "images": "raw", "train": None, "val": None, "annotations": None}


class Outputs(NamedTuple):
    images: list[ImageRecord]
    rejected: dict[str, str]
    classes: list[str]
    members: list[str]
    instances: Any  # the content of instances.json
    truth: LabelMaps

    @property
    def objects(self) -> list[Instance]:
        return [Instance.from_coco(a) for a in self.instances["annotations"]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params_of(data: dict[str, Any], backend: str = "torchvision", precision: str = "auto", crf: str = "conv") -> dict[str, Any]:
    """The part of params.yaml that prepare reads."""
    groups: dict[str, Any] = {key.split(".")[0]: {"precision": precision} for key in prepare.PRECISION_KEYS}
    for group, key in (name.split(".") for name in prepare.WEIGHT_KEYS):
        groups.setdefault(group, {})[key] = "models/fresh"
    groups["detector"]["backend"] = backend
    return {"data": data, "fetch": [], "crf": {"method": crf}, **groups}


def run(data: dict[str, Any], backend: str = "torchvision", precision: str = "auto", crf: str = "conv") -> Outputs:
    Path("params.yaml").write_text(yaml.safe_dump(params_of(data, backend, precision, crf)))
    prepare.main("images.json", "rejected.json", "truth.zip")
    rejected = json.loads(Path("rejected.json").read_text())["rejected"]
    with zipfile.ZipFile("truth.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        classes = json.loads(archive.read("classes.json"))["classes"]
        instances = json.loads(archive.read("instances.json")) if "instances.json" in names else None
    labels = LabelMaps("truth.zip", "semantic/")
    return Outputs(read_images("images.json"), {r["file_name"]: r["reason"] for r in rejected}, classes, names, instances, labels)


def photo(path: str, h: int = 12, w: int = 10, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((h, w, 3), 90, np.uint8)).save(path, **options)


def turned_photo(path: str, orientation: int = 6) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    photo(path, exif=exif)


def mask(path: str, values: Any, mode: str = "P") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Pillow.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putdata(np.asarray(values, np.uint8).ravel().tolist())
        image.putpalette([(37 * i) % 256 for i in range(768)])  # colours that are not the indices
    else:
        image = image.convert(mode)
    image.save(path)


def lines(path: str, *content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(content) + "\n")


# ---------------------------------------------------------------- the group in params.yaml


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "imagenet"}, "data.kind is 'imagenet'; it must be one of folder, voc, coco"),
        ({"images": "other"}, "data.images is other; it must be data.root"),
        ({"images": "raw/../other"}, "data.images is raw/../other"),
        ({"images": "rawer"}, "data.images is rawer"),
        ({"train": None}, "data.train is null; kind voc"),
        ({"train": "/etc/passwd"}, "data.train is '/etc/passwd'"),
        ({"val": "../list.txt"}, "data.val is '../list.txt'"),
        ({"val": ""}, "data.val is ''"),
        ({"annotations": "a.json"}, "data.annotations is a.json; it must be null for kind voc"),
        ({"kind": "folder"}, "data.train is train.txt; it must be null for kind folder"),
        ({"kind": "coco"}, "data.annotations is None; it must name the JSON"),
        ({"kind": "coco", "train": "a.json", "annotations": "a.json"}, "data.annotations is a.json"),
        ({"kind": "coco", "train": "a.json", "val": "b.txt"}, "data.annotations is None"),
    ],
)
def test_an_invalid_group_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        factories.group("data", Data, **{**VOC, **change})
    assert str(error.value).removeprefix("params.yaml: ").startswith(says)


@pytest.mark.parametrize(
    "change", [{}, {"root": "."}, {"images": "raw"}, {"root": "/abs", "images": "/abs/in"}, {"val": "v.txt"}]
)
def test_a_valid_group_is_accepted(change: dict[str, Any]) -> None:
    factories.group("data", Data, **{**VOC, **change})


# ---------------------------------------------------------------- any folder


def test_a_folder_is_searched_in_the_order_of_names_and_the_rest_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.JPG", "a b/ünïcode ✓.png", "a.webp", "Z.bmp", ".hidden.jpg", ".cache/x.jpg", "x.jpg/inner.tiff"):
        photo(f"raw/{name}", 12 + len(name), 20)
    lines("raw/notes.txt", "no image")
    lines("raw/Makefile", "no image")
    lines("raw/a b/more.TXT", "no image")
    lines("raw/video.mpg", "no image")
    Path("raw/loop").symlink_to("..", target_is_directory=True)
    outputs = run(FOLDER)
    names = ["Z.bmp", "a b/ünïcode ✓.png", "a.webp", "b.JPG", "x.jpg/inner.tiff"]
    assert [i.file_name for i in outputs.images] == names
    assert [i.id for i in outputs.images] == [1, 2, 3, 4, 5]
    assert [i.size for i in outputs.images] == [(12 + len(n), 20) for n in names]
    assert {i.split for i in outputs.images} == {"train"}
    assert outputs.rejected == {"loop": "a link to a folder, not followed"}
    assert (outputs.classes, outputs.members) == ([], ["classes.json"])
    out = capsys.readouterr().out
    assert "raw: 5 images (5 train)" in out
    assert "1 rejected (1 a link to a folder, not followed): see rejected.json" in out
    assert "4 other files ignored (2 .txt, 1 .mpg, 1 without suffix)" in out
    assert "0 of them with ground truth" in out


def test_images_below_root_are_the_only_ones() -> None:
    photo("raw/photos/a.jpg")
    photo("raw/other/b.jpg")
    assert [i.file_name for i in run({**FOLDER, "images": "raw/photos"}).images] == ["a.jpg"]


def test_two_runs_give_the_same_bytes() -> None:
    for i in range(9):
        photo(f"raw/{i % 3}/{i}.png", 10 + i)
    lines("raw/0/bad.jpg", "text")
    run(FOLDER)
    first = {f: Path(f).read_bytes() for f in ("images.json", "rejected.json", "truth.zip")}
    run(FOLDER)
    assert first == {f: Path(f).read_bytes() for f in first}
    assert str(Path.cwd()).encode() not in b"".join(first.values())


def odd_images() -> dict[str, tuple[int, int] | str]:
    """Write odd files; the size, or the start of the reason, that each must come to."""
    grey = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)
    rgb = np.repeat(grey[..., None], 3, 2)
    Path("raw").mkdir()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        (Pillow.fromarray(grey.astype(np.uint16)) if mode == "I;16" else Pillow.fromarray(rgb).convert(mode)).save(
            f"raw/{mode}.png"
        )
    Pillow.fromarray(rgb).convert("CMYK").save("raw/cmyk.jpg")
    Pillow.fromarray(grey.astype(np.float32)).save("raw/float.tiff")
    Pillow.fromarray(grey.astype(np.int32)).save("raw/int.tiff")
    Pillow.fromarray(rgb).convert("LAB").save("raw/lab.tiff")
    Pillow.fromarray(rgb).convert("P").save("raw/p.gif", transparency=3)
    frames = [Pillow.fromarray(np.roll(rgb, i)) for i in range(3)]
    frames[0].save("raw/film.gif", save_all=True, append_images=frames[1:])
    turned_photo("raw/exif6.jpg")
    turned_photo("raw/exif3.jpg", 3)
    photo("raw/exif broken.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    photo("raw/thin.png", 100, 1)
    photo("raw/dot.png", 1, 1)
    photo("raw/strip.png", 8, 129)
    photo("raw/widest.png", 8, 128)
    photo("raw/smallest.png", 8, 8)
    photo("raw/photo.ps.png", 12, 10)
    Path("raw/empty.jpg").touch()
    lines("raw/text.jpg", "I am no photograph")
    whole = Path("raw/RGB.png").read_bytes()
    Path("raw/cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    photo("raw/cut.jpg", 200, 200, quality=95)
    whole = Path("raw/cut.jpg").read_bytes()
    Path("raw/cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("raw/noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(500))
    Path("raw/eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    Path("raw/folder.jpg").mkdir()
    Path("raw/broken link.jpg").symlink_to("nowhere.jpg")
    Path("raw/circle.jpg").symlink_to("circle.jpg")
    os.mkfifo("raw/pipe.jpg")
    photo("outside.jpg")
    Path("raw/outside.jpg").symlink_to(Path("outside.jpg").resolve())
    Path("raw/inside.jpg").symlink_to("cmyk.jpg")
    good = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]
    return {
        **{f"{mode}.png": (12, 10) for mode in good},
        **dict.fromkeys(
            ("cmyk.jpg", "float.tiff", "int.tiff", "lab.tiff", "p.gif", "film.gif", "exif3.jpg", "inside.jpg"), (12, 10)
        ),
        "exif6.jpg": (10, 12),
        "exif broken.jpg": (12, 10),
        "photo.ps.png": (12, 10),
        "widest.png": (8, 128),
        "smallest.png": (8, 8),
        "thin.png": "too thin or too small: 100 x 1",
        "dot.png": "too thin or too small: 1 x 1",
        "strip.png": "too thin or too small: 8 x 129",
        "empty.jpg": "0 bytes",
        "text.jpg": "not an image",
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "noise.png": "",
        "eps.jpg": "cannot be decoded: EPS",
        "broken link.jpg": "no such file",
        "circle.jpg": "cannot be opened",
        "pipe.jpg": "not a regular file",
        "outside.jpg": "leads out of data.images",
    }


def test_odd_images_are_handled_or_listed(capsys: pytest.CaptureFixture[str]) -> None:
    expected = odd_images()
    outputs = run(FOLDER)
    good = {i.file_name: i.size for i in outputs.images}
    assert good == {name: size for name, size in expected.items() if isinstance(size, tuple)}
    assert outputs.rejected.keys() == expected.keys() - good.keys()
    for name, reason in outputs.rejected.items():
        assert reason.startswith(expected[name]), (name, reason)
        assert str(Path.cwd()) not in reason
    out = capsys.readouterr().out
    assert f"raw: {len(good)} images" in out
    assert f"{len(outputs.rejected)} rejected (" in out
    assert "3 too thin or too small" in out


def test_a_decompression_bomb_is_rejected_and_a_large_image_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    photo("raw/large.png", 40, 40)
    photo("raw/bomb.png", 100, 100)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here and refuses twice as much
    outputs = run(FOLDER)
    assert [i.file_name for i in outputs.images] == ["large.png"]
    assert outputs.rejected["bomb.png"].startswith("a decompression bomb")


def test_reasons_name_no_place_on_this_machine() -> None:
    path = Path("raw/a.jpg").resolve()
    reason = examination.explain(PermissionError(13, "Permission denied", str(path)), path)
    assert reason == "cannot be decoded: [Errno 13] Permission denied: 'a.jpg'"
    assert examination.explain(EOFError(), path) == "cannot be decoded: EOFError"


def test_a_name_that_is_no_text_is_rejected() -> None:
    photo("raw/a.jpg")
    try:
        Path(os.fsdecode(b"raw/b\xff.jpg")).write_bytes(Path("raw/a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    outputs = run(FOLDER)
    assert outputs.rejected == {"b\\udcff.jpg": "its name is not UTF-8 text: rename it"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: None, r"data\.root: raw: no such folder"),
        (lambda: Path("raw").mkdir(), r"raw: no image found \(empty\)"),
        (lambda: lines("raw/a.heic", "x"), r"raw: no image found \(1 \.heic\)"),
        (lambda: lines("raw/a.jpg", "x"), r"data\.train: raw: none of its images can be used; rejected\.json has the reasons"),
    ],
)
def test_a_folder_without_photographs_is_an_error(make: Any, says: str) -> None:
    make()
    with pytest.raises(InputError, match=says):
        run(FOLDER)
    assert not Path("images.json").exists()


def test_a_detector_that_is_not_installed_ends_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as where it is not installed
    Path("raw").mkdir()
    photo("raw/a.png")
    with pytest.raises(InputError, match=r"detectron2 is not installed; install .* or set detector.backend: torchvision"):
        run(FOLDER, "detectron2")
    assert not Path("images.json").exists()
    assert len(run(FOLDER).images) == 1


def test_a_dense_crf_that_is_not_installed_ends_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    photo("raw/a.png")
    with pytest.raises(InputError, match=r"pydensecrf is not installed; pip install pydensecrf2.* or set crf.method: conv"):
        run(FOLDER, crf="dense")
    assert not Path("images.json").exists()
    assert len(run(FOLDER).images) == 1


def test_an_environment_that_cannot_be_used_ends_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    photo("raw/a.jpg")
    monkeypatch.setenv("UNSEG_WORKERS", "many")
    with pytest.raises(InputError, match="UNSEG_WORKERS is 'many'"):
        run(FOLDER)
    assert not Path("images.json").exists()


def test_bf16_on_a_cpu_that_emulates_it_ends_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    photo("raw/a.jpg")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    with pytest.raises(InputError, match=r"croc\.precision, .*: bf16 is emulated on this CPU, .*; set auto or fp32"):
        run(FOLDER, precision="bf16")
    assert not Path("images.json").exists()


def test_the_command_line_ends_in_one_line_and_needs_no_torch() -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params_of(FOLDER)))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "stages.prepare", "--index", "a.json", "--rejected", "b.json", "--truth", "c.zip"]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: data.root: raw: no such folder")
    check = "import sys, stages.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=env).returncode == 0


# ---------------------------------------------------------------- PASCAL VOC


def voc_toy() -> tuple[np.ndarray, np.ndarray]:
    """Two photographs for training, one held out, one both; masks of one, with two instances and a strip of void."""
    for stem in "cabd":
        photo(f"raw/JPEGImages/{stem}.jpg")
    lines("raw/train.txt", "c", "a", "d")
    lines("raw/val.txt", "b", "d")
    semantic, objects = np.zeros((12, 10), np.uint8), np.zeros((12, 10), np.uint8)
    semantic[1:5, 1:5], objects[1:5, 1:5] = 20, 1
    semantic[6:9, 2:8], objects[6:9, 2:8] = 7, 2
    semantic[8, 2:8] = 9  # the outvoted third of instance 2
    semantic[5, 1:5] = objects[4:6, 1:5] = 255  # void is no instance, even over a class
    objects[11, :3] = 3  # background alone: not an instance
    return semantic, objects


def test_voc_splits_ids_maps_and_instances() -> None:
    semantic, objects = voc_toy()
    mask("raw/SegmentationClass/a.png", semantic)
    mask("raw/SegmentationObject/a.png", objects)
    outputs = run({**VOC, "val": "val.txt"})
    assert [(i.id, i.file_name, i.split) for i in outputs.images] == [
        *[(1, "a.jpg", "train"), (2, "b.jpg", "val"), (3, "c.jpg", "train"), (4, "d.jpg", "both")]
    ]
    assert outputs.members == ["semantic/a.jpg.png", "instances.json", "classes.json"]
    assert (outputs.classes[0], outputs.classes[7], outputs.classes[20], len(outputs.classes)) == (
        "background",
        "car",
        "tvmonitor",
        21,
    )
    np.testing.assert_array_equal(outputs.truth[outputs.images[0]], semantic)
    assert [i["file_name"] for i in outputs.instances["images"]] == ["a.jpg"]
    assert {c["id"]: c["name"] for c in outputs.instances["categories"]} == dict(enumerate(outputs.classes[1:], 1))
    assert [(x.id, x.image_id, x.category_id, x.iscrowd) for x in outputs.objects] == [(1, 1, 20, False), (2, 1, 7, False)]
    for x, value in zip(outputs.objects, (1, 2), strict=True):
        np.testing.assert_array_equal(x.mask.decode(), objects == value)


def test_masks_of_the_augmented_set_are_taken_where_voc_has_none() -> None:
    semantic, objects = voc_toy()
    mask("raw/SegmentationClass/a.png", semantic)
    mask("raw/SegmentationClassAug/a.png", np.zeros_like(semantic))
    mask("raw/SegmentationClassAug/c.png", objects)
    outputs = run(VOC)
    assert outputs.members[:2] == ["semantic/a.jpg.png", "semantic/c.jpg.png"]
    by_name = {i.file_name: i for i in outputs.images}
    np.testing.assert_array_equal(outputs.truth[by_name["a.jpg"]], semantic)
    np.testing.assert_array_equal(outputs.truth[by_name["c.jpg"]], objects)


def test_voc_without_object_masks_has_no_instances_and_without_masks_no_truth() -> None:
    semantic, _ = voc_toy()
    mask("raw/SegmentationClass/b.png", semantic, "L")
    outputs = run({**VOC, "val": "val.txt"})
    assert (outputs.members, outputs.instances) == (["semantic/b.jpg.png", "classes.json"], None)
    Path("raw/SegmentationClass/b.png").unlink()
    outputs = run({**VOC, "val": "val.txt"})
    assert (outputs.members, outputs.classes) == (["classes.json"], [])


@pytest.mark.parametrize(
    ("values", "mode", "says"),
    [
        (np.zeros((10, 12)), "P", r"SegmentationClass/a\.png is \(10, 12\), its photograph \(12, 10\)"),
        (np.zeros((12, 10)), "RGB", r"SegmentationClass/a\.png has mode RGB"),
        (np.full((12, 10), 21), "P", r"SegmentationClass/a\.png has the value 21"),
        (np.full((12, 10), 254), "L", r"SegmentationClass/a\.png has the value 254"),
    ],
)
def test_a_voc_mask_that_does_not_fit_is_an_error(values: Any, mode: str, says: str) -> None:
    voc_toy()
    mask("raw/SegmentationClass/a.png", values, mode)
    with pytest.raises(InputError, match=says):
        run(VOC)
    assert not list(Path().glob("*truth*"))


def test_a_voc_mask_that_is_broken_or_outside_is_an_error() -> None:
    voc_toy()
    lines("raw/SegmentationClass/a.png", "text")
    with pytest.raises(InputError, match=r"SegmentationClass/a\.png cannot be read as a PNG"):
        run(VOC)
    mask("secret.png", np.zeros((12, 10)))
    Path("raw/SegmentationClass/a.png").unlink()
    Path("raw/SegmentationClass/a.png").symlink_to(Path("secret.png").resolve())
    with pytest.raises(InputError, match=r"SegmentationClass/a\.png leads out of"):
        run(VOC)


def test_listed_files_that_are_missing_or_lead_out_are_rejected() -> None:
    voc_toy()
    photo("raw/secret.jpg")
    photo("raw/JPEGImages/stem.png")
    Path("raw/JPEGImages/folder.jpg").mkdir()
    lines("raw/train.txt", "a", "gone", "../secret", str(Path("raw/secret").resolve()), "folder", "x/../a", "", "./b", "stem")
    outputs = run(VOC)
    assert [i.file_name for i in outputs.images] == ["a.jpg", "b.jpg", "stem.png"]
    assert outputs.rejected == {
        "gone.jpg": "no such file",
        "../secret.jpg": "leads out of data.images",
        f"{Path('raw/secret').resolve()}.jpg": "leads out of data.images",
        "x/../a.jpg": "leads out of data.images",
        "folder.jpg": "a folder",
    }


@pytest.mark.parametrize(
    ("change", "content", "says"),
    [
        ({"train": "no.txt"}, ["a"], r"raw/no\.txt cannot be read as a list"),
        ({}, ["", ""], r"raw/train\.txt is empty"),
        ({}, ["a", "b", "a"], r"raw/train\.txt names a twice"),
        ({}, ["x", "y"], r"data\.train: train\.txt: none of its images can be used"),
        ({"val": "new.txt"}, ["a"], r"data\.val: new\.txt: none of its images can be used"),
        ({"images": "raw/Photos"}, ["a"], r"data\.images: raw/Photos: no such folder"),
    ],
)
def test_lists_that_cannot_be_used_are_errors(change: dict[str, Any], content: list[str], says: str) -> None:
    voc_toy()
    lines("raw/train.txt", *content)
    lines("raw/new.txt", "nothing", "here")
    with pytest.raises(InputError, match=says):
        run({**VOC, **change})


def test_a_turned_photograph_is_kept_where_no_mask_contradicts_it() -> None:
    voc_toy()
    turned_photo("raw/JPEGImages/a.jpg", 6)
    turned_photo("raw/JPEGImages/c.jpg", 3)  # upside down: its size would not tell
    mask("raw/SegmentationClass/c.png", np.zeros((12, 10)))
    outputs = run(VOC)
    assert {i.file_name: i.size for i in outputs.images} == {"a.jpg": (10, 12), "d.jpg": (12, 10)}
    assert outputs.rejected["c.jpg"].startswith("turned by EXIF")


# ---------------------------------------------------------------- COCO

SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]  # x, y: three columns and two rows of a 5 x 6 image


def coco_json(path: str, annotations: Any = (), images: Any = None, **content: Any) -> None:
    images = images or [{"id": 7, "file_name": "a.png", "height": 12, "width": 10}]
    categories = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]
    write_json(path, {"images": images, "annotations": list(annotations), "categories": categories, **content})


def thing(id: int, segmentation: Any, category: int = 90, image: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def box(x: int, y: int, w: int, h: int) -> list[int]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def test_segmentations_of_all_kinds_come_to_the_same_mask() -> None:
    by_hand = np.zeros((5, 6), bool)
    by_hand[1:3, 1:4] = True
    plain = [6, 2, 3, 2, 3, 2, 12]  # down the columns: 6 off, rows 1 and 2 of column 1, 3 off, ...
    expected = masks.encode(by_hand)
    for segmentation in ([SQUARE], {"size": [5, 6], "counts": plain}, expected.rle, json.dumps(expected.rle).encode()):
        mask = coco.to_mask(segmentation, (5, 6))
        np.testing.assert_array_equal(mask.decode(), by_hand)
        assert mask == expected
    assert coco.to_mask([box(0, 0, 2, 2), box(1, 1, 3, 2)], (5, 6)).area == 4 + 6 - 1
    over = coco.to_mask([[2, 1, 12, 1, 12, 10, 2, 10]], (5, 6))  # corners outside the image, by at most one image
    assert over.area == 4 * 4
    assert not coco.to_mask([[1, 1, 1.2, 1, 1.2, 1.2]], (5, 6)).area  # no pixel's centre


@pytest.mark.parametrize(
    "segmentation",
    [
        *[None, [], {}, "text", 5, [[]], [5, 5, 9, 9], SQUARE],
        *[[[0, 0, 3, 3]], [[0, 0, 3, 3, 1]], [[0, 0, 3, 3, 1, 2, 4]], [SQUARE, [1, 2]]],  # a box in disguise; odd
        *[[[0, 0, 3, 3, 1, float("nan")]], [[0, 0, 3, 3, 1, "2"]], [[0, 0, 3, 3, 1, 1e9]], [[0, 0, 3, 3, -9, 2]]],
        *[{"size": [5, 6], "counts": c} for c in ([6, 2], [6, 2, 23], [31, -1], [30.0], ["30"], "", "0" * 40, "~", "o", None)],
        *[
            {"size": [6, 5], "counts": [30]},
            {"counts": [30]},
            masks.encode(np.ones((6, 5), bool)).rle,
        ],
        {"size": [5, 6], "counts": masks.encode(np.eye(5, 6) > 0).counts[:-1]},
        {"size": [5, 6], "counts": masks.encode(np.eye(5, 6) > 0).counts + "o"},
    ],
)
def test_an_invalid_segmentation_is_refused(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        coco.to_mask(segmentation, (5, 6))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(pixels: np.ndarray) -> None:
    h, w = pixels.shape
    mask = masks.encode(pixels)
    lengths = masks.run_lengths([mask.counts])[0]
    assert masks.from_run_lengths(lengths.tolist(), (h, w)) == mask
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    np.testing.assert_array_equal(values.reshape(w, h).T, pixels)


def test_long_runs_and_falling_ones_are_read() -> None:
    lengths = [0, 100_000, 3, 7, 40_000, 1, 123_456, 1]
    counts = masks.from_run_lengths(lengths, (1, sum(lengths))).counts
    assert masks.run_lengths([counts, "01", counts])[2].tolist() == lengths


def test_smaller_objects_stay_visible_and_crowds_are_void() -> None:
    photo("raw/images/a.png")
    small, large, crowd, tiny = box(3, 3, 2, 2), box(1, 1, 8, 8), box(1, 6, 5, 5), box(2, 8, 1, 1)
    run_lengths = coco.to_mask([crowd], (12, 10)).rle
    coco_json(
        "raw/t.json",
        [thing(5, [small], 3), thing(6, [large], 90), thing(7, run_lengths, 90, iscrowd=1), thing(9, [tiny], 3)],
    )
    outputs = run(COCO_)
    expected = np.zeros((12, 10), np.uint8)
    expected[1:9, 1:9] = 2  # dog, the second of the ids
    expected[6:11, 1:6] = 255
    expected[3:5, 3:5] = 1
    expected[8, 2] = 1
    np.testing.assert_array_equal(outputs.truth[outputs.images[0]], expected)
    assert outputs.classes == ["background", "cat", "dog"]
    assert outputs.instances["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    values = [(a["id"], a["category_id"], a["iscrowd"], a["area"], a["bbox"]) for a in outputs.instances["annotations"]]
    assert values == [
        *[(1, 1, 0, 4, [3, 3, 2, 2]), (2, 2, 0, 64, [1, 1, 8, 8]), (3, 2, 1, 25, [1, 6, 5, 5]), (4, 1, 0, 1, [2, 8, 1, 1])]
    ]
    assert [(i.id, i.split) for i in outputs.images] == [(7, "train")]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (thing(41, [[0, 0, 3, 3]]), r"t\.json: annotation 41 of a\.png: a segmentation is a list of polygons"),
        (thing(41, None), r"annotation 41 of a\.png: it has no segmentation"),
        (thing(41, {"size": [10, 12], "counts": [120]}), r"annotation 41 of a\.png: its size is \[10, 12\]"),
        (thing(41, [SQUARE], category=4), r"annotation 41: category_id 4 is not among the categories"),
        (thing(41, [SQUARE], image=8), r"annotation 41 is of image 8, which the file does not list"),
        (5, r"annotations\[0\]: image_id is 'None'; COCO's format has int here"),
    ],
)
def test_a_bad_annotation_is_an_error_that_names_it(bad: Any, says: str) -> None:
    photo("raw/images/a.png")
    coco_json("raw/t.json", [bad])
    with pytest.raises(InputError, match=says):
        run(COCO_)


def record(id: Any, name: Any, h: Any = 12, w: Any = 10) -> dict[str, Any]:
    return {"id": id, "file_name": name, "height": h, "width": w}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", r"t\.json: images is 'None'; COCO's format has list here"),
        ("{", r"t\.json is not JSON"),
        ('{"images": {}}', r"images is '\{\}'"),
        (json.dumps({"images": [record("7", "a.png")]}), r"images\[0\]: id is '7'"),
        (json.dumps({"images": [record(True, "a.png")]}), r"images\[0\]: id is 'True'"),
        (json.dumps({"images": [record(7, None)]}), r"images\[0\]: file_name is 'None'"),
        (json.dumps({"images": [record(7, "a.png", 12.5)]}), r"images\[0\]: height is '12.5'"),
        (
            json.dumps({"images": [record(7, "a.png"), record(7, "b.png")]}),
            r"two images have the id 7; each needs a different one",
        ),
        (json.dumps({"images": [record(7, "a.png"), record(8, "./a.png")]}), r"two images have the file_name 'a\.png'"),
        (json.dumps({"images": [], "annotations": None}), r"annotations is 'None'"),
        (json.dumps({"images": [], "categories": [{"id": 1}]}), r"categories\[0\]: name is 'None'"),
        (json.dumps({"images": [], "categories": [{"id": 1, "name": n} for n in "ab"]}), r"category id 1 is both a and b"),
        (json.dumps({"images": [record(7, "gone.png")]}), r"data\.train: t\.json: none of its images can be used"),
        (json.dumps({"images": []}), r"raw/images: no image found \(empty\)"),
    ],
)
def test_a_json_of_another_form_is_an_error(content: str, says: str) -> None:
    photo("raw/images/a.png")
    Path("raw/t.json").write_text(content)
    with pytest.raises(InputError, match=says):
        run(COCO_)


def test_names_that_lead_out_and_sizes_that_disagree_are_rejected() -> None:
    photo("raw/images/sub/a.png")
    photo("raw/images/b.png")
    photo("raw/secret.png")
    turned_photo("raw/images/turned.jpg", 6)
    turned_photo("raw/images/over.jpg", 3)
    names = ["sub/a.png", "../secret.png", str(Path("raw/secret.png").resolve()), "nul\0.png", "sub", ""]
    records = [record(i, n) for i, n in enumerate(names)]
    records += [record(20, "b.png", 10, 12), record(21, "turned.jpg"), record(22, "over.jpg")]
    coco_json("raw/t.json", [thing(1, [SQUARE], image=22)], records)
    outputs = run(COCO_)
    assert [i.file_name for i in outputs.images] == ["sub/a.png"]
    assert outputs.members == ["semantic/sub/a.png.png", "instances.json", "classes.json"]
    heads = {name: reason.split(":")[0] for name, reason in outputs.rejected.items()}
    out = "leads out of data.images"
    assert heads == {
        **{names[1]: out, names[2]: out, names[3]: "its name is not UTF-8 text", "sub": "a folder", ".": "a folder"},
        **dict.fromkeys(("b.png", "turned.jpg"), "not of the annotated size"),
        "over.jpg": "turned by EXIF, but its annotation is not",
    }


def test_text_lists_name_images_in_every_way() -> None:
    names = [
        "COCO_train2014_000000000009.jpg",
        "000000000030.jpg",
        "x y.jpg",
        "sub/d.jpg",
        "e.jpg",
        "sub/f.jpg",
        "f.jpg",
        "g.jpg",
    ]
    for name in names:
        photo(f"raw/images/{name}")
    coco_json("raw/all.json", [], [record(i, n) for i, n in zip((9, 30, 41, 52, 63, 74, 85, 96), names, strict=True)])
    train = [
        "train2014/COCO_train2014_000000000009.jpg",
        "COCO_train2014_000000000030",
        "x y.jpg",
        "d",
        "63",
        "nowhere.jpg",
        "f.jpg",
    ]
    lines("raw/train.txt", *train)
    lines("raw/val.txt", "elsewhere/f.jpg", "e", "g.jpg")
    outputs = run({**COCO_, "train": "train.txt", "val": "val.txt", "annotations": "all.json"})
    assert {i.id: i.split for i in outputs.images} == {
        **{9: "train", 30: "train", 41: "train", 52: "train", 63: "both", 85: "train", 96: "val"}
    }
    assert outputs.rejected.keys() == {"nowhere.jpg", "elsewhere/f.jpg"}  # the second could be either
    lines("raw/val.txt", "g.jpg", "96")
    with pytest.raises(InputError, match=r"val\.txt: 96 names g\.jpg a second time"):
        run({**COCO_, "train": "train.txt", "val": "val.txt", "annotations": "all.json"})


def test_two_jsons_their_splits_folders_and_truths() -> None:
    for name in ("train9/a.png", "train9/c.png", "val9/b.png"):
        photo(f"raw/images/{name}")
    coco_json("raw/instances_train9.json", [thing(1, [SQUARE], 3, 1)], [record(2, "c.png"), record(1, "a.png")])
    coco_json("raw/instances_val9.json", [thing(1, [SQUARE], 90, 5)], [record(5, "val9/b.png")])
    outputs = run({**COCO_, "train": "instances_train9.json", "val": "instances_val9.json"})
    index = [(i.id, i.file_name, i.split) for i in outputs.images]
    assert index == [(1, "train9/a.png", "train"), (2, "train9/c.png", "train"), (5, "val9/b.png", "val")]
    assert [int(outputs.truth[i].max()) for i in outputs.images] == [1, 0, 2]
    assert [(a["id"], a["image_id"]) for a in outputs.instances["annotations"]] == [(1, 1), (2, 5)]
    content = json.loads(Path("raw/instances_val9.json").read_text())
    content["categories"][0]["name"] = "horse"
    write_json("raw/instances_val9.json", content)
    with pytest.raises(InputError, match=r"instances_val9\.json: category 90 is horse, in .*train9\.json dog"):
        run({**COCO_, "train": "instances_train9.json", "val": "instances_val9.json"})


def test_one_json_for_both_splits_gives_each_truth_once() -> None:
    photo("raw/images/a.png")
    coco_json("raw/t.json", [thing(1, [SQUARE])])
    outputs = run({**COCO_, "val": "t.json"})
    assert [(i.id, i.split) for i in outputs.images] == [(7, "both")]
    assert len(outputs.instances["annotations"]) == 1
    coco_json("raw/v.json", [thing(1, [SQUARE], 3), thing(2, [SQUARE], 3)])
    outputs = run({**COCO_, "val": "v.json"})
    assert [a["category_id"] for a in outputs.instances["annotations"]] == [1, 1]
    coco_json("raw/t.json", [], [record(7, "a.png", 99, 99)])  # the file that gives the truth gives the size
    assert [i.size for i in run({**COCO_, "val": "v.json"}).images] == [(12, 10)]


def test_ids_that_clash_are_counted_anew() -> None:
    for name in ("b.png", "a.png"):
        photo(f"raw/images/{name}")
    coco_json("raw/t.json", [thing(1, [SQUARE], 3, 1)], [record(1, "b.png")])
    coco_json("raw/v.json", [thing(1, [SQUARE], 90, 1)], [record(1, "a.png")])
    outputs = run({**COCO_, "val": "v.json"})
    assert [(i.id, i.file_name, i.split) for i in outputs.images] == [(1, "a.png", "val"), (2, "b.png", "train")]
    assert [int(outputs.truth[i].max()) for i in outputs.images] == [2, 1]
    assert {a["image_id"]: a["category_id"] for a in outputs.instances["annotations"]} == {1: 2, 2: 1}


def test_a_json_without_annotations_gives_photographs_and_no_truth() -> None:
    photo("raw/images/a.png")
    write_json("raw/t.json", {"images": [record(7, "a.png")]})
    outputs = run(COCO_)
    assert (outputs.members, outputs.classes, len(outputs.images)) == (["classes.json"], [], 1)


@pytest.mark.parametrize(("count", "fits"), [(254, True), (255, False)])
def test_a_label_map_holds_254_classes(count: int, fits: bool) -> None:
    photo("raw/images/a.png")
    coco_json("raw/t.json", [thing(1, [SQUARE], count)], categories=[{"id": i + 1, "name": f"c{i}"} for i in range(count)])
    if fits:
        outputs = run(COCO_)
        assert outputs.truth[outputs.images[0]].max() == 254
    else:
        with pytest.raises(InputError, match=r"255 categories; a label map holds 254"):
            run(COCO_)


# ---------------------------------------------------------------- whole data sets


def test_the_demo_goes_through_with_its_exact_truth() -> None:
    demo.write(Path("raw"), demo.Demo(train=12, val=6, size=32), seed=3)
    outputs = run({**COCO_, "train": "annotations/instances_train.json", "val": "annotations/instances_val.json"})
    assert outputs.rejected == {}
    assert outputs.classes == ["background", *demo.CLASSES]
    assert [i.split for i in outputs.images] == ["train"] * 12 + ["val"] * 6
    assert [i.id for i in outputs.images] == list(range(1, 19))
    for n, image in enumerate(outputs.images):
        rng = np.random.default_rng([3, image.split == "val", n if n < 12 else n - 12])
        pixels, objects = demo.scene(rng, 32)
        np.testing.assert_array_equal(np.array(Pillow.open(Path("raw/images") / image.file_name)), pixels)
        semantic = np.zeros((32, 32), np.uint8)
        for label, visible in objects:
            semantic[visible] = label
        np.testing.assert_array_equal(outputs.truth[image], semantic)
        instances = [x for x in outputs.objects if x.image_id == image.id]
        assert [x.category_id for x in instances] == [label for label, _ in objects]
        for x, (_, visible) in zip(instances, objects, strict=True):
            np.testing.assert_array_equal(x.mask.decode(), visible)


@pytest.mark.skipif(not (REAL / "VOC2012").is_dir(), reason="../shared/data/VOC2012 is not here")
def test_real_voc() -> None:
    root = str(REAL / "VOC2012")
    lists = {f"{s}": f"ImageSets/Segmentation/{s}.txt" for s in ("train", "val")}
    outputs = run({**VOC, "root": root, "images": f"{root}/JPEGImages", **lists})
    splits = [i.split for i in outputs.images]
    assert (splits.count("train"), splits.count("val"), len(splits), outputs.rejected) == (311, 381, 692, {})
    assert [i.id for i in outputs.images] == list(range(1, 693))
    assert outputs.instances is None
    assert len(outputs.members) == 693
    for image in outputs.images[::23]:
        png = Pillow.open(Path(root) / "SegmentationClass" / f"{Path(image.file_name).stem}.png")
        np.testing.assert_array_equal(outputs.truth[image], np.array(png))


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason="../shared/data/coco is not here")
@pytest.mark.parametrize("folder", ["", "/train2017"])
def test_real_coco_against_pycocotools(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(REAL / "coco")
    file = "annotations/instances_train2017.json"
    outputs = run({**COCO_, "root": root, "images": root + folder, "train": file})
    theirs = COCO(Path(root) / file)
    assert (len(outputs.images), len(outputs.instances["annotations"]), len(outputs.classes), outputs.rejected) == (
        80,
        705,
        81,
        {},
    )
    assert [i.id for i in outputs.images] == sorted(theirs.getImgIds())
    names = {c["name"]: c["id"] for c in theirs.loadCats(theirs.getCatIds())}
    for image in outputs.images[:: 4 if folder else 8]:
        ours = [x for x in outputs.objects if x.image_id == image.id]
        annotations = theirs.loadAnns(theirs.getAnnIds(image.id))
        pixels = [theirs.annToMask(a) for a in annotations]
        for x, a, mask in zip(ours, annotations, pixels, strict=True):
            assert (names[outputs.classes[x.category_id]], x.iscrowd) == (a["category_id"], a["iscrowd"])
            np.testing.assert_array_equal(x.mask.decode(), mask)
        values = outputs.truth[image]
        covered = np.any(pixels, 0) if pixels else np.zeros(image.size, bool)
        np.testing.assert_array_equal(values > 0, covered)
        for label in np.unique(values[values > 0]):
            masks_of_label = [m for m, x in zip(pixels, ours, strict=True) if (255 if x.iscrowd else x.category_id) == label]
            assert np.any(masks_of_label, 0)[values == label].all()


def test_painting_does_not_depend_on_the_order_of_the_annotations() -> None:
    rng = np.random.default_rng(0)
    fractions = (0.9, 0.5, 0.2, 0.05)
    instances = [factories.instance(rng.random((9, 9)) < f, category_id=i) for i, f in enumerate(fractions, 1)]
    painted = truth.paint((9, 9), instances)
    np.testing.assert_array_equal(painted, truth.paint((9, 9), instances[::-1]))
    np.testing.assert_array_equal(painted == 4, instances[3].mask.decode())


# Archives


def packed(path: str, **members: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def picture(seed: int = 0) -> bytes:
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)).save("one.webp", lossless=True)
    return Path("one.webp").read_bytes()


def test_archives_of_photographs() -> None:
    odd = {"../out.png": picture(), "/abs.png": picture(), "sub/.hidden.png": picture(), "__MACOSX/x.png": picture()}
    packed("raw/in/a.zip", **{"sub/b.webp": picture(1), "a.webp": picture(2), "note.txt": b"x", "bad.png": b"x", **odd})
    Path("raw/c.png").write_bytes(picture(3))
    Path("raw/broken.zip").write_bytes(b"PK no zip")
    outputs = run(FOLDER)
    assert [i.file_name for i in outputs.images] == ["c.png", "in/a.zip/a.webp", "in/a.zip/sub/b.webp"]
    assert [i.size for i in outputs.images] == [(20, 30)] * 3
    assert outputs.rejected.pop("broken.zip").startswith("an archive that cannot be read")
    assert outputs.rejected == {
        "in/a.zip/../out.png": "leads out of its archive",
        "in/a.zip//abs.png": "leads out of its archive",
        "in/a.zip/bad.png": "not an image",
    }
    for image, seed in zip(outputs.images, (3, 2, 1), strict=True):
        want = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
        assert np.array_equal(np.array(photos.read("raw", image)), want)


def test_a_member_without_a_name() -> None:
    packed("raw/a.zip", **{"a.webp": picture(), "no-name": b""})
    file = Path("raw/a.zip")
    file.write_bytes(file.read_bytes().replace(b"no-name", b"\0o-name"))  # to zipfile a name ends there
    assert [i.file_name for i in run(FOLDER).images] == ["a.zip/a.webp"]


def test_a_member_too_large_to_be_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    packed("raw/a.zip", **{"a.webp": picture(), "b.png": b"0" * 5000})
    monkeypatch.setattr(photos, "MAX_MEMBER_BYTES", 4000)
    assert run(FOLDER).rejected == {"a.zip/b.png": "cannot be decoded: a member of 5000 bytes is too large for a photograph"}


def test_a_name_in_a_list_may_lead_into_an_archive_but_not_out(tmp_path: Path) -> None:
    packed("raw/images/a.zip", **{"a.webp": picture()})
    packed("other.zip", **{"a.webp": picture()})
    root = (tmp_path / "raw/images").resolve()
    assert examination.refuse(root, "a.zip/a.webp") is None
    assert examination.refuse(root, "a.zip/../../../other.zip/a.webp") == "leads out of data.images"
    assert examination.refuse(root, str(tmp_path / "other.zip/a.webp")) is not None
    (root / "link.zip").symlink_to(tmp_path / "other.zip")
    assert examination.refuse(root, "link.zip/a.webp") == "leads out of data.images"
    missing = examination.Candidate("a.zip/gone.webp", "train")
    assert examination.examine_file(root, missing) == "cannot be decoded: a.zip has no gone.webp"


def test_each_process_reads_an_archive_for_itself() -> None:
    packed("raw/a.zip", **{"a.webp": picture(1), "b.webp": picture(2)})
    with zipfile.ZipFile("raw/a.zip") as archive:
        assert photos.open_archive(Path("raw/a.zip"), 1) is photos.open_archive(Path("raw/a.zip"), 1)
        assert photos.open_archive(Path("raw/a.zip"), 1) is not photos.open_archive(Path("raw/a.zip"), 2)
        assert photos.split_archive("raw/a.zip/b.webp") == (Path("raw/a.zip"), "b.webp")
        assert photos.split_archive("raw/b.webp") is None
        assert photos.pillow_source("raw/a.zip/b.webp").read() == archive.read("b.webp")  # type: ignore[union-attr]
        photos.open_archive(Path("raw/a.zip"), os.getpid()).close()
        with pytest.raises(ValueError, match="closed"):
            photos.pillow_source("raw/a.zip/b.webp")
    photos.open_archive.cache_clear()
