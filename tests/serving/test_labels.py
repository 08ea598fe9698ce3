"""unseg export-labels and import-labels: each format is read back, and what cannot be used ends in one line."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import factories
import numpy as np
import pytest
import yaml
from PIL import Image as Pillow
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from unseg.core import storage
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps, write_label_maps
from unseg.serving import few_labels
from unseg.serving.cli.main import main
from unseg.serving.labels import brush, formats, polygons

SIZES = {"a.jpg": (40, 60), "sub dir/b.jpg": (50, 30), "sub dir/c.png": (33, 47)}
NAMES = {1: "dog", 3: "cluster 2", 4: "tree & <leaf>"}  # cluster 1 is merged into 0
FORMATS = ("coco", "yolo-seg", "voc", "label-studio", "cvat", "png")


def ring(size: tuple[int, int]) -> np.ndarray:
    """A disc with two holes, a diagonal of single pixels, and a pixel: [H, W] bool."""
    rows, cols = np.mgrid[: size[0], : size[1]]
    far = (rows - 16) ** 2 + (cols - 14) ** 2
    mask = (far < 170) & (far > 20) & ((rows - 22) ** 2 + (cols - 20) ** 2 > 4)
    mask[rows + cols == 2] = True
    mask[-1, -1] = True
    return mask


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    """Label maps after merging: 1 with holes, 3, 4, 255."""
    made = {}
    for name, size in SIZES.items():
        labels = np.zeros(size, np.uint8)
        labels[28:, 5:12] = 3
        labels[:4, 20:] = 4
        labels[ring(size)] = 1
        labels[30:32, :3] = 255
        made[name] = labels
    return made


@pytest.fixture
def run(tmp_path: Path, maps: dict[str, np.ndarray]) -> Path:
    """What the commands read of a finished run of K = 5: a.jpg and c.png were predicted, b.jpg has a pseudo-label."""
    root = tmp_path / "run"
    (root / "data/predictions").mkdir(parents=True)
    images = [ImageRecord(i, n, *SIZES[n], s) for i, (n, s) in enumerate(zip(SIZES, ("both", "train", "val"), strict=True), 1)]
    storage.write_json(root / "data/images.json", {"images": [vars(i) for i in images]})
    storage.write_json(root / "data/instances.json", {"categories": [{"id": k} for k in range(5)], "annotations": []})
    (root / "params.yaml").write_text("final: r1\ndetections: detections\n")
    text = "{0: {name: dog, colour: '#e69f00'}, 1: {merge: 0}, 3: {name: tree & <leaf>}, 4: {ignore: true}}"
    (root / "clusters.yaml").write_text(f"clusters: {text}\n")
    raw = {}
    for name, labels in maps.items():
        raw[name] = labels.copy()
        raw[name][10:20, :][labels[10:20, :] == 1] = 2  # merged into 1
        raw[name][labels == 255] = 5
    write_label_maps(root / "data/predictions/r1.zip", [(n, raw[n]) for n in ("a.jpg", "sub dir/c.png")])
    write_label_maps(root / "data/labels-r1.zip", [(n, raw[n] * (n != "a.jpg")) for n in ("a.jpg", "sub dir/b.jpg")])
    found = [(1, 1, ring(SIZES["a.jpg"]), 0.75), (1, 0, ring(SIZES["a.jpg"]), 0.25), (3, 3, maps["sub dir/c.png"] == 4, 0.9),
             (3, 4, maps["sub dir/c.png"] == 4, 0.95)]  # fmt: skip
    records = [factories.detection(m, s, i, k).to_coco() for i, k, m, s in found]
    storage.write_json(root / "data/detections.json", records)
    return root


def export(run: Path, format: str, *words: str) -> Path:
    out = run.parent / f"out-{format}"
    main(["export-labels", str(run), "--format", format, "-o", str(out), *words])
    return out


def refused(words: list[Any], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(w) for w in words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def painted(path: Path) -> dict[str, np.ndarray]:
    """The label maps of a COCO file, by pycocotools."""
    coco = COCO(str(path))
    made = {}
    for i in coco.dataset["images"]:
        labels = np.zeros((i["height"], i["width"]), np.uint8)
        for a in coco.imgToAnns[i["id"]]:
            labels[coco.annToMask(a) > 0] = a["category_id"]
        made[i["file_name"]] = labels
    return made


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, labels in want.items():
        np.testing.assert_array_equal(got[name], labels, name)


# ---- export


def test_coco_is_what_pycocotools_reads(run: Path, maps: dict[str, np.ndarray]) -> None:
    out = export(run, "coco")
    same(painted(out / "semantic.json"), maps)
    content = json.loads((out / "semantic.json").read_text())
    assert {c["id"]: c["name"] for c in content["categories"]} == {**NAMES, 255: "void"}
    assert content["categories"][0]["color"] == "#e69f00"
    found = json.loads((out / "instances.json").read_text())
    assert [(a["image_id"], a["category_id"], a["score"]) for a in found["annotations"]] == [(1, 1, 0.75), (3, 4, 0.9)]
    np.testing.assert_array_equal(coco_mask.decode(found["annotations"][0]["segmentation"]), ring(SIZES["a.jpg"]))


def test_score_and_no_instances(run: Path) -> None:
    out = export(run, "coco", "--score", "0.2")
    assert len(json.loads((out / "instances.json").read_text())["annotations"]) == 3
    shutil.rmtree(out)
    assert not (export(run, "coco", "--no-instances") / "instances.json").exists()


def test_png_has_the_labels_and_their_names(run: Path, maps: dict[str, np.ndarray]) -> None:
    out = export(run, "png")
    same({n: np.asarray(Pillow.open(out / f"labels/{n}.png")) for n in maps}, maps)
    rows = [line.split("\t") for line in (out / "classes.tsv").read_text().splitlines()]
    assert {int(value): name for value, name, _ in rows[1:]} == {0: "background", **NAMES, 255: "void"}


def yolo(out: Path, name: str) -> dict[int, np.ndarray]:
    """The union of each class's polygons, as trainers rasterise them."""
    size, made = SIZES[name], {}
    for line in (out / f"labels/{formats.stem(name)}.txt").read_text().splitlines():
        label, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2) * size[::-1]
        assert len(points) >= 3
        assert ((points >= 0) & (points < size[::-1])).all()
        cv2.fillPoly(made.setdefault(int(label), np.zeros(size, np.uint8)), [points.astype(np.int32)], 1)
    return made


def test_yolo_bridges_holes(run: Path, maps: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    out = export(run, "yolo-seg", "--no-instances")
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == {0: "dog", 1: "cluster 2", 2: "tree & <leaf>"}
    for name, labels in maps.items():
        for c, got in yolo(out, name).items():
            np.testing.assert_array_equal(got, labels == list(NAMES)[c])
    assert "6 holes are joined" in capsys.readouterr().out
    shutil.rmtree(out)
    (got,) = yolo(export(run, "yolo-seg"), "a.jpg").values()
    np.testing.assert_array_equal(got, ring(SIZES["a.jpg"]))


@pytest.mark.parametrize("seed", range(5))
def test_polygons_of_noise_give_the_mask_again(seed: int) -> None:
    noise = np.random.default_rng(seed).random((60, 80)).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), (0.6, 1, 2, 3, 4)[seed]) > 0.45
    got = np.zeros(mask.shape, np.uint8)
    for points, _ in polygons.pixel_polygons(mask):
        cv2.fillPoly(got, [points], 1)
    np.testing.assert_array_equal(got > 0, mask)


def test_voc_by_colour_and_by_value(run: Path, maps: dict[str, np.ndarray]) -> None:
    out = export(run, "voc")
    rows = [line.split(":") for line in (out / "labelmap.txt").read_text().splitlines()]
    colours = {name: tuple(map(int, rgb.split(","))) for name, rgb, _, _ in rows}
    stems = (out / "ImageSets/Segmentation/default.txt").read_text().splitlines()
    assert stems == ["a", "sub dir/b", "sub dir/c"]
    for name, labels in maps.items():
        file = Pillow.open(out / f"SegmentationClass/{formats.stem(name)}.png")
        np.testing.assert_array_equal(np.asarray(file), labels)
        rgb = np.asarray(file.convert("RGB"))
        for label, title in {0: "background", **NAMES, 255: "void"}.items():
            np.testing.assert_array_equal((rgb == colours[title]).all(2), labels == label)
        objects = np.asarray(Pillow.open(out / f"SegmentationObject/{formats.stem(name)}.png"))
        np.testing.assert_array_equal(objects == 0, labels == 0)
        assert all(len(np.unique(labels[objects == n])) == 1 for n in np.unique(objects))
    (node,) = ElementTree.parse(out / "Annotations/sub dir/c.xml").findall("object")
    assert node.findtext("name") == "tree & <leaf>"
    assert [node.findtext(f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")] == ["21", "1", "47", "4"]


def test_cvat_takes_archives(run: Path, maps: dict[str, np.ndarray], tmp_path: Path) -> None:
    out = export(run, "cvat")
    with zipfile.ZipFile(out / "masks.zip") as archive:
        assert {"labelmap.txt", "ImageSets/Segmentation/default.txt"} < set(archive.namelist())
        for name, labels in maps.items():
            png = archive.read(f"SegmentationClass/{formats.stem(name)}.png")
            np.testing.assert_array_equal(np.asarray(Pillow.open(io.BytesIO(png))), labels)
    with zipfile.ZipFile(out / "semantic.zip") as archive:
        archive.extractall(tmp_path / "semantic")
    same(painted(tmp_path / "semantic/annotations/instances_default.json"), maps)
    assert zipfile.ZipFile(out / "instances.zip").namelist() == ["annotations/instances_default.json"]
    assert [x["name"] for x in json.loads((out / "labels.json").read_text())] == [*NAMES.values(), "void"]


def test_label_studio_has_brushes(run: Path, maps: dict[str, np.ndarray]) -> None:
    out = export(run, "label-studio")
    titles = {**{v: k for k, v in NAMES.items()}, "void": 255}
    tasks = json.loads((out / "tasks.json").read_text())
    assert [t["data"]["image"] for t in tasks][1] == "/data/local-files/?d=sub%20dir/b.jpg"
    got = {}
    for task in tasks:
        name = task["data"]["file_name"]
        got[name] = np.zeros(SIZES[name], np.uint8)
        for r in task["predictions"][0]["result"]:
            assert (r["original_height"], r["original_width"]) == SIZES[name]
            got[name][brush.decode(r["value"]["rle"], SIZES[name])] = titles[r["value"]["brushlabels"][0]]
    same(got, maps)
    found = tasks[0]["predictions"][2]
    assert (found["score"], found["result"][0]["score"], found["result"][0]["value"]["brushlabels"]) == (0.75, 0.75, ["dog"])
    view = ElementTree.parse(out / "config.xml").getroot()
    controls = {"BrushLabels": "label", "PolygonLabels": "polygon"}
    for tag, name in controls.items():
        control = view.find(tag)
        assert control is not None
        assert (control.get("name"), control.get("toName")) == (name, view.find("Image").get("name"))  # type: ignore[union-attr]
        assert [x.get("value") for x in control] == list(titles)
    assert {r["from_name"] for r in tasks[0]["predictions"][0]["result"]} == {"label"}
    assert {r["from_name"] for r in tasks[0]["predictions"][1]["result"]} == {"polygon"}


def test_label_studio_reads_the_brushes(run: Path) -> None:
    theirs = pytest.importorskip("label_studio_sdk.converter.brush")
    out = export(run, "label-studio")
    for task in json.loads((out / "tasks.json").read_text()):
        height, width = SIZES[task["data"]["file_name"]]
        for r in task["predictions"][0]["result"]:
            got = theirs.decode_rle(r["value"]["rle"]).reshape(height, width, 4)[..., 3]
            np.testing.assert_array_equal(got > 0, brush.decode(r["value"]["rle"], (height, width)))


def test_label_studio_converts_the_polygons(run: Path, maps: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Its COCO export of accepted polygons has our masks."""
    converter = pytest.importorskip("label_studio_sdk.converter")
    out = export(run, "label-studio")
    tasks = json.loads((out / "tasks.json").read_text())
    for n, task in enumerate(tasks):
        (tmp_path / "photos" / task["data"]["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", SIZES[task["data"]["file_name"]][::-1]).save(tmp_path / "photos" / task["data"]["file_name"])
        task["data"]["image"] = str(tmp_path / "photos" / task["data"]["file_name"])
        task |= {"id": n, "annotations": [{"id": n, "result": task.pop("predictions")[1]["result"]}]}
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    theirs = converter.Converter(str(out / "config.xml"), str(tmp_path), download_resources=False)
    theirs.convert_to_coco(str(tmp_path / "done.json"), str(tmp_path / "coco"), is_dir=False)
    coco = COCO(str(tmp_path / "coco/result.json"))
    titles = {v: k for k, v in {**NAMES, 255: "void"}.items()}
    assert len(coco.dataset["images"]) == len(maps)
    for image in coco.dataset["images"]:
        labels = maps[Path(image["file_name"]).relative_to(tmp_path / "photos").as_posix()]
        found: dict[int, np.ndarray] = {}
        for a in coco.imgToAnns[image["id"]]:
            label = titles[coco.cats[a["category_id"]]["name"]]
            found[label] = found.get(label, np.zeros(labels.shape, bool)) | (coco.annToMask(a) > 0)
        assert found.keys() == set(np.unique(labels).tolist()) - {0}
        assert min(polygons.iou(mask, labels == k) for k, mask in found.items()) >= 0.99


def test_supervision_reads_yolo(run: Path, maps: dict[str, np.ndarray]) -> None:
    supervision = pytest.importorskip("supervision")
    out = export(run, "yolo-seg", "--no-instances")
    for name, size in SIZES.items():
        (out / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", size[::-1]).save(out / "images" / name)
    flat = supervision.DetectionDataset.from_yolo(
        str(out / "images"), str(out / "labels"), str(out / "data.yaml"), force_masks=True
    )
    assert len(flat) >= 1  # sub-folders are not read by all versions
    for path, _, found in flat:
        labels = maps[Path(path).relative_to(out / "images").as_posix()]
        for c in set(found.class_id.tolist()):
            np.testing.assert_array_equal(found.mask[found.class_id == c].any(0), labels == list(NAMES)[c])


def test_datumaro_reads_voc_and_cvats_coco(run: Path, maps: dict[str, np.ndarray], tmp_path: Path) -> None:
    dataset = pytest.importorskip("datumaro.components.dataset")
    out = export(run, "cvat")
    for name, kind in (("masks", "voc_segmentation"), ("semantic", "coco_instances")):
        with zipfile.ZipFile(out / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        for image, size in SIZES.items():
            photo = tmp_path / name / ("JPEGImages" if name == "masks" else "images/default") / image
            photo.parent.mkdir(parents=True, exist_ok=True)
            Pillow.new("RGB", size[::-1]).save(photo)
        read = dataset.Dataset.import_from(str(tmp_path / name), kind)
        titles = [label.name for label in read.categories()[next(iter(read.categories()))]]
        by_stem = {formats.stem(n): labels for n, labels in maps.items()}
        assert len(read) == len(maps)
        for item in read:
            got = np.zeros_like(by_stem[item.id])
            for a in (a for a in item.annotations if hasattr(a, "image")):  # not boxes
                got[np.asarray(a.image) > 0] = {"background": 0, "void": 255, **{v: k for k, v in NAMES.items()}}[titles[a.label]]
            np.testing.assert_array_equal(got, by_stem[item.id])


def test_a_brush_decodes_single_values_too() -> None:
    """A run of values that differ, as Label Studio's own brushes have them."""
    values = [0, 0, 0, 255, 9, 9, 9, 0]  # two pixels
    head = f"{8:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in brush.SIZES)
    text = head + "0" + "00" + f"{7:03b}" + "".join(f"{v:08b}" for v in values)
    text += "0" * (-len(text) % 8)
    data = [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    assert brush.decode(data, (1, 2)).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="cut short"):
        brush.decode(data[:-2], (1, 2))


def test_long_runs_of_a_brush() -> None:
    mask = np.zeros((400, 300), bool)
    mask[200:, 7:] = True
    assert (brush.decode(brush.encode(mask), mask.shape) == mask).all()


# ---- from unseg predict


@pytest.fixture
def predicted(tmp_path: Path, maps: dict[str, np.ndarray]) -> Path:
    """A folder as `unseg predict` writes it (tests/serving/test_api.py), and a frame of a video."""
    out = tmp_path / "predicted"
    for name, labels in maps.items():
        (out / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(labels).save(out / f"labels/{name}.png")
    (out / "labels/film.mp4.zip").write_bytes(b"")
    images = [{"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(SIZES.items(), 1)]
    images.append({"id": 9, "file_name": "film.mp4/000000", "height": 8, "width": 8})
    coco = {"images": images, "categories": [{"id": k, "name": n, "colour": f"#00000{k}"} for k, n in NAMES.items()]}
    one = factories.instance(maps["a.jpg"] == 3, 1, 3).to_coco() | {"score": 0.625}
    storage.write_json(out / "predictions.json", coco | {"annotations": [one]})
    two = factories.detection(maps["a.jpg"] == 3, 0.5, 1, 3).to_coco()
    storage.write_json(out / "instances.json", coco | {"annotations": [two]})
    return out


def test_predictions_keep_their_confidence(
    predicted: Path, maps: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(predicted, "coco")
    same(painted(out / "semantic.json"), maps)
    scores = {
        (a["image_id"], a["category_id"]): a.get("score") for a in json.loads((out / "semantic.json").read_text())["annotations"]
    }
    assert scores[1, 3] == 0.625
    assert scores[1, 1] is None
    assert [a["category_id"] for a in json.loads((out / "instances.json").read_text())["annotations"]] == [3]
    assert "1 frames of videos are left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../a.jpg", "/tmp/a.jpg", "x/../../a.jpg", "a\\b.jpg", ""])
@pytest.mark.parametrize("format", ["png", "voc"])
def test_a_name_in_json_never_leads_out(predicted: Path, name: str, format: str) -> None:
    content = json.loads((predicted / "predictions.json").read_text())
    content["images"][0]["file_name"] = name
    (predicted / "predictions.json").write_text(json.dumps(content))
    before = sorted(predicted.parent.rglob("*"))
    refused(["export-labels", predicted, "--format", format, "-o", predicted.parent / "o/out"], "is no file name below")
    assert sorted(predicted.parent.rglob("*")) == before


def test_what_cannot_be_exported_leaves_nothing(run: Path, predicted: Path, tmp_path: Path) -> None:
    words = ["--format", "voc", "-o", tmp_path / "o"]
    refused(["export-labels", tmp_path, *words], "is neither the folder of a run nor")
    refused(["export-labels", run, *words, "--score", "2"], "--score 2.0")
    refused(["export-labels", run, "--format", "voc", "-o", run], "exists already")
    refused(["export-labels", predicted, *words, "--clusters", "x"], "give --clusters to that command")
    (run / "clusters.yaml").write_text("clusters: {0: {colour: '#102030'}, 2: {colour: '#102030'}}")
    refused(["export-labels", run, *words], "cluster 0 and cluster 2 have one colour")
    Pillow.new("L", (3, 3)).save(predicted / "labels/sub dir/c.png.png")
    refused(["export-labels", predicted, *words], "is (3, 3), its photograph (33, 47)")
    content = (predicted / "predictions.json").read_text()
    (predicted / "predictions.json").write_text(content.replace("0.625", "NaN"))
    refused(["export-labels", predicted, *words], "a score is not from 0 to 1")
    (predicted / "predictions.json").write_text('{"images": []}')
    refused(["export-labels", predicted, *words], "is not as `unseg predict` writes it")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".", "o"))]


# ---- import


def as_corrected(out: Path) -> Path:
    """Label Studio's export after its predictions were accepted; the last task is not done."""
    tasks = json.loads((out / "tasks.json").read_text())
    for task in tasks[:-1]:
        chosen = task.pop("predictions")[0]["result"]
        task["annotations"] = [{"result": chosen}, {"result": [], "was_cancelled": True}]
    del tasks[1]["data"]["file_name"]  # the address alone says it
    (out / "done.json").write_text(json.dumps(tasks))
    return out / "done.json"


def corrected(made: Path) -> dict[str, np.ndarray]:
    """The label maps in a zip of import-labels."""
    zipped = LabelMaps(made)
    return {n: zipped[ImageRecord(1, n, *size, "both")] for n, size in SIZES.items() if f"{n}.png" in zipped.names}


def bring(run: Path, path: Path, format: str) -> dict[str, np.ndarray]:
    main(["import-labels", str(path), "--format", format, "--run", str(run), "-o", str(run / "z.zip"), "--force"])
    return corrected(run / "z.zip")


@pytest.mark.parametrize(
    ("format", "file"),
    [("coco", "semantic.json"), ("png", ""), ("label-studio", ""), ("cvat", "masks.zip"), ("cvat", "semantic.zip")],
)
def test_a_round_trip_gives_the_same_maps(run: Path, maps: dict[str, np.ndarray], format: str, file: str) -> None:
    out = export(run, format)
    path = as_corrected(out) if format == "label-studio" else out / file
    done = list(SIZES)[:2] if format == "label-studio" else list(SIZES)
    same(bring(run, path, format), {n: maps[n] for n in done})


def iou(got: np.ndarray, want: np.ndarray, label: int) -> float:
    return polygons.iou(got == label, want == label)


def test_polygons_of_label_studio_come_back(
    run: Path, maps: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simplified to an IoU of .99; exact without that. Accepted polygons, a brush and a choice in one annotation."""
    for tolerances, least in (((2.0, 1.0, 0.5), 0.99), ((), 1.0)):
        monkeypatch.setattr(polygons, "TOLERANCES", tolerances)
        out = export(run, "label-studio")
        tasks = json.loads((out / "tasks.json").read_text())
        for task in tasks:
            brushes, outlined = task.pop("predictions")[:2]
            assert outlined["model_version"] == "unseg labels, polygons"
            assert {r["type"] for r in outlined["result"]} == {"polygonlabels"}
            last = [r for r in brushes["result"] if r["value"]["brushlabels"] == ["void"]]
            choice = {"type": "choices", "value": {"choices": ["sharp"]}, "from_name": "c", "to_name": "image"}
            others = [r for r in outlined["result"] if r["value"]["polygonlabels"] != ["void"]]
            task["annotations"] = [{"result": [*others, *last, choice]}]
        (run / "c.json").write_text(json.dumps(tasks))
        got = bring(run, run / "c.json", "label-studio")
        assert min(iou(got[n], maps[n], k) for n in maps for k in np.unique(maps[n]).tolist()) >= least
        assert "3 results of the type choices are left out" in capsys.readouterr().out
        shutil.rmtree(out)


@pytest.mark.parametrize("seed", range(5))
def test_outlines_of_noise_are_the_mask(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(seed).random((60, 80)).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), (0.6, 1, 2, 3, 4)[seed]) > 0.45
    assert polygons.iou(polygons.rasterise(polygons.outlines(mask)[0], mask.shape), mask) >= 0.99
    monkeypatch.setattr(polygons, "TOLERANCES", ())
    parts, holes = polygons.outlines(mask)
    np.testing.assert_array_equal(polygons.rasterise(parts, mask.shape), mask)
    count = cv2.connectedComponents((~np.pad(mask, 1, constant_values=False)).astype(np.uint8), connectivity=4)[0]
    assert holes == count - 2  # the background is no hole, and label 0 is the mask


def annotated(run: Path, *results: dict[str, Any]) -> Path:
    """An export of Label Studio with one task, a.jpg (40 rows, 60 columns), whose results are given without what all have."""
    common = {"original_width": 60, "original_height": 40, "image_rotation": 0, "from_name": "x", "to_name": "image"}
    task = {"data": {"file_name": "a.jpg"}, "annotations": [{"result": [common | r for r in results]}]}
    (run / "c.json").write_text(json.dumps([task]))
    return run / "c.json"


def rectangle(**changes: Any) -> dict[str, Any]:
    value = {"x": 50, "y": 25, "width": 20, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]} | changes
    return {"type": "rectanglelabels", "value": value}


def test_rectangles_and_polygons_by_hand(run: Path) -> None:
    """12 x 20 pixels from column 30 and row 10 on; turned by 90 degrees around that corner they lie to its left."""
    triangle = {"points": [[0, 0], [50, 0], [0, 50]], "closed": True, "polygonlabels": ["cluster 2"]}
    labels = bring(run, annotated(run, rectangle(), {"type": "polygonlabels", "value": triangle}), "label-studio")["a.jpg"]
    assert (labels == 1).sum() == (labels[10:30, 30:42] == 1).sum() == 240
    assert (labels[:10, :10] == 3).all()
    assert (labels == 3).sum() == pytest.approx(300, abs=10)
    turned = bring(run, annotated(run, rectangle(rotation=90)), "label-studio")["a.jpg"]
    assert (turned == 1).sum() == (turned[10:22, 10:30] == 1).sum() == 240


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (rectangle() | {"original_width": 61}, "a rectangle is (40, 61), the photograph (40, 60)"),
        (rectangle() | {"image_rotation": 90}, "was turned by 90 degrees in Label Studio; turn it back"),
        (rectangle() | {"type": "ellipselabels"}, "a region is 'ellipselabels'; brushes, polygons and rectangles"),
        (rectangle(x=float("nan")), "no list of three points or more"),
        (rectangle(rectanglelabels=[]), "a region has 0 labels"),
        (rectangle(rectanglelabels=["zebra"]), "the run has no cluster 'zebra'"),
        (rectangle(x=None), "is not as Label Studio exports JSON"),
        ({"type": "polygonlabels", "value": {"points": [[0, 0], [1, 1]], "polygonlabels": ["dog"]}}, "three points or more"),
        ({"type": "polygonlabels", "value": {"points": [[0, 0], [1e9, 1], [1, 1]], "polygonlabels": ["dog"]}}, "three points"),
        ({"type": "polygonlabels", "value": {"points": [0, 1, 2], "polygonlabels": ["dog"]}}, "three points or more"),
        ({"type": "polygonlabels", "value": {"polygonlabels": ["dog"]}}, "is not as Label Studio exports JSON"),
    ],
)
def test_regions_that_cannot_be_used(run: Path, result: dict[str, Any], message: str) -> None:
    path = annotated(run, result)
    refused(["import-labels", path, "--format", "label-studio", "--run", run, "-o", run / "z.zip"], message)
    assert not (run / "z.zip").exists()


def cvat(run: Path, changes: dict[str, bytes]) -> Path:
    """The archive of masks as CVAT exports it, with other or more members: colours without a palette."""
    with zipfile.ZipFile(export(run, "cvat") / "masks.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in (n for n in members if n.startswith("SegmentationClass/")):
        members[name] = storage.encode_png(np.asarray(Pillow.open(io.BytesIO(members[name])).convert("RGB")))
    members["labelmap.txt"] = b"# label:color_rgb:parts:actions\n" + members["labelmap.txt"]
    with zipfile.ZipFile(run / "cvat.zip", "w") as archive:
        for name, content in (members | changes).items():
            archive.writestr(name, content)
    return run / "cvat.zip"


def test_cvats_masks_in_colour(run: Path, maps: dict[str, np.ndarray]) -> None:
    same(bring(run, cvat(run, {}), "cvat"), maps)


PINK = storage.encode_png(np.full((40, 60, 3), (255, 0, 200), np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"../escape.png": b""}, "'../escape.png' is no file name below"),
        ({"/tmp/escape.png": b""}, "'/tmp/escape.png' is no file name below"),
        ({"SegmentationClass/other.png": PINK}, "there is no photograph 'other'"),
        ({"SegmentationClass/a.png": storage.encode_png(np.zeros((41, 60), np.uint8))}, "is (41, 60), its photograph (40, 60)"),
        ({"SegmentationClass/a.png": PINK}, "has the colour #ff00c8, which labelmap.txt does not list"),
        ({"SegmentationClass/a.png": bytes(100_000)}, "100000 bytes; that is no mask of a.jpg"),
        ({"SegmentationClass/a.png": b"no PNG"}, "is not an archive that CVAT exports"),
        ({"labelmap.txt": b""}, "is not an archive that CVAT exports"),
        ({"labelmap.txt": b"dog:red::"}, "is not an archive that CVAT exports"),
    ],
)
def test_an_archive_of_cvat_that_cannot_be_used(run: Path, changes: dict[str, bytes], message: str) -> None:
    path, before = cvat(run, changes), sorted(run.parent.rglob("*"))
    words = ["--run", run, "-o", run / "z.zip", "--masks", run / "masks"]
    refused(["import-labels", path, "--format", "cvat", *words], message)
    assert sorted(run.parent.rglob("*")) == before


def test_other_archives(run: Path, tmp_path: Path) -> None:
    words = ["--format", "cvat", "--run", run, "-o", run / "z.zip"]
    (tmp_path / "no.zip").write_bytes(b"PK no")
    refused(["import-labels", tmp_path / "no.zip", *words], "is not an archive that CVAT exports")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("annotations/a.json", "{}")
        archive.writestr("annotations/b.json", "{}")
    refused(["import-labels", tmp_path / "two.zip", *words], "neither labelmap.txt nor one JSON file")
    refused(["import-labels", tmp_path / "none.zip", *words], "none.zip")
    assert not (run / "z.zip").exists()


def test_masks_for_probe(run: Path, maps: dict[str, np.ndarray], tmp_path: Path) -> None:
    """New classes, polygons and uncompressed run lengths, without a run; sub-folders as `unseg probe` pairs them."""
    for name, size in SIZES.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", size[::-1]).save(tmp_path / "photos" / name)
    images = [{"id": i, "file_name": n} for i, n in enumerate(list(SIZES)[:2])]
    lengths = [50 * 30 - 100, 100]
    annotations = [
        {"image_id": 0, "category_id": 7, "segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]]},
        {"image_id": 1, "category_id": 5, "segmentation": {"size": [50, 30], "counts": lengths}},
    ]
    categories = [{"id": 2, "name": "unused"}, {"id": 5, "name": "zebra"}, {"id": 7, "name": "fox"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    words = ["--photos", tmp_path / "photos", "--run", tmp_path, "--masks", tmp_path / "masks"]
    main([str(w) for w in ["import-labels", tmp_path / "c.json", "--format", "coco", *words]])
    pairs = few_labels.pairs(tmp_path / "photos", tmp_path / "masks")
    assert [p.relative_to(tmp_path / "photos").as_posix() for p, _ in pairs] == list(SIZES)[:2]
    first, second = (few_labels.read_mask(m, s) for (_, m), s in zip(pairs, SIZES.values(), strict=False))
    assert few_labels.class_names(None, tmp_path / "masks", 3) == ["background", "zebra", "fox"]
    assert (first == 2).sum() == 100
    assert (first[10:20, 10:20] == 2).all()
    assert (second.ravel("F")[-100:] == 1).all()
    refused(["import-labels", tmp_path / "c.json", "--format", "coco", "--run", run, "-o", run / "z.zip"], "no cluster 'zebra'")


def broken(content: Any, *keys: Any, value: Any) -> str:
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("images", 0, "file_name"), "other.jpg", "there is no photograph 'other.jpg'"),
        (("images", 0, "file_name"), "../a.jpg", "is no file name below"),
        (("images", 0, "height"), 41, "a.jpg is (41, 60), the photograph (40, 60)"),
        (("annotations", 0, "category_id"), 77, "the category 77"),
        (("annotations", 0, "image_id"), 77, "the image 77"),
        (("annotations", 0, "segmentation", "size"), [4, 4], "a mask is (4, 4), the photograph (40, 60)"),
        (("annotations", 0, "segmentation", "counts"), "00", "do not add up"),
        (("annotations", 0, "segmentation"), [[0, 0, 1e9, 0, 1e9, 1e9]], "neither polygons near the photograph nor"),
        (("categories",), None, "is not COCO's JSON"),
        (("images",), [], "which is not listed"),
    ],
)
def test_a_coco_file_that_cannot_be_used(run: Path, keys: tuple[Any, ...], value: Any, message: str) -> None:
    content = json.loads((export(run, "coco") / "semantic.json").read_text())
    (run / "c.json").write_text(broken(content, *keys, value=value))
    words = ["--run", run, "-o", run / "z.zip", "--masks", run / "masks"]
    refused(["import-labels", run / "c.json", "--format", "coco", *words], message)
    assert not (run / "z.zip").exists()
    assert not (run / "masks").exists()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((0, "annotations", 0, "result", 0, "original_width"), 61, "a brush is (40, 61), the photograph (40, 60)"),
        ((0, "annotations", 0, "result", 0, "value", "rle"), brush.encode(np.ones((40, 61), bool)), "2440 pixels, not 40 x 60"),
        ((0, "annotations", 0, "result", 0, "value", "rle"), [1, 2], "cut short"),
        ((0, "annotations", 0, "result", 0, "value", "format"), "png", "a brush has the format 'png'"),
        ((0, "data", "file_name"), "other.jpg", "there is no photograph 'other.jpg'"),
        ((0, "annotations", 0, "result"), None, "is not as Label Studio exports JSON"),
        ((0, "annotations"), [], "1 tasks"),
    ],
)
def test_an_export_of_label_studio_that_cannot_be_used(run: Path, keys: tuple[Any, ...], value: Any, message: str) -> None:
    content = json.loads(as_corrected(export(run, "label-studio")).read_text())[:1]
    (run / "c.json").write_text(broken(content, *keys, value=value))
    refused(["import-labels", run / "c.json", "--format", "label-studio", "--run", run, "-o", run / "z.zip"], message)
    assert not (run / "z.zip").exists()


def test_other_input_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    words = ["--format", "png", "--run", run]
    refused(["import-labels", tmp_path / "png", *words], "nothing to write")
    refused(["import-labels", tmp_path / "png", *words, "-o", "z.zip", "--photos", tmp_path], "leave --photos out")
    refused(["import-labels", tmp_path / "png", *words, "-o", run / "z.zip"], "has no mask")
    Pillow.new("L", (60, 40), 3).save(tmp_path / "png/a.png")
    Pillow.new("L", (60, 40), 2).save(tmp_path / "png/a.jpg.png")
    refused(["import-labels", tmp_path / "png", *words, "-o", run / "z.zip"], "has the value 2, which has no name")
    (tmp_path / "png/a.jpg.png").unlink()
    main([str(w) for w in ["import-labels", tmp_path / "png", *words, "-o", run / "z.zip"]])
    assert (LabelMaps(run / "z.zip")[ImageRecord(1, "a.jpg", 40, 60, "both")] == 3).all()
    refused(["import-labels", tmp_path / "png", *words, "-o", run / "z.zip"], "exists already")
    refused(["import-labels", tmp_path / "png", "--format", "coco", "--run", run, "-o", run / "y.zip"], "has 0 JSON files")
    refused(["import-labels", tmp_path / "png", "--format", "png", "--run", tmp_path, "--masks", tmp_path / "m"], "images.json")
