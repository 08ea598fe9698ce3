"""unseg.load(...).predict(photo), tiles and `unseg predict`: maps, merges, files, errors."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import factories
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

import unseg
from unseg.core import image_index, label_maps, masks
from unseg.core.console import InputError
from unseg.core.instances import Detection
from unseg.data import video
from unseg.detection import detector
from unseg.detection.settings import Detect, Detector
from unseg.engine import batching, precision
from unseg.segmentation import segmenter, tiles
from unseg.segmentation.crf import Crf, refine
from unseg.serving import api
from unseg.serving.cli.main import main

SHAPE = {"arch": "resnet18", "width": 4, "stride": 8, "rates": [1, 2, 4], "labels": 5}
CRF = Crf("conv", 2, 1.0, 3.0, 20.0, 3.0, 4.0, window=12, stride=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of four clusters whose answers differ from place to place."""
    path = tmp_path_factory.mktemp("model") / "s.safetensors"
    torch.manual_seed(3)
    net = segmenter.DeepLab(**SHAPE)  # type: ignore[arg-type]
    with torch.no_grad():
        net.head[-1].weight *= 30  # type: ignore[operator]
    segmenter.write_segmenter(path, net, SHAPE, 32, "fp32")
    return path


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")


def photo(height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def clusters_yaml(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(f"clusters: {text}")
    return folder / "c.yaml"


# ---- tiles


@pytest.mark.parametrize("n", [1, 40, 64, 65, 111, 112, 113, 200, 1000])
def test_spans_cover_and_weights_sum_to_one(n: int) -> None:
    parts = tiles.spans(n, 64, 16)
    assert parts[0][0] == 0
    assert parts[-1][1] == n
    assert all(b - a == min(n, 64) for a, b in parts)
    assert all(one[1] - two[0] >= 16 for one, two in pairwise(parts))
    total = torch.zeros(n)
    for (a, b), w in zip(parts, tiles.weights(parts, 16), strict=True):
        assert (w > 0).all()
        total[a:b] += w
    assert torch.allclose(total, torch.ones(n), atol=1e-6)


def test_weights_fall_towards_a_tiles_inner_border() -> None:
    one, two = tiles.weights([(0, 64), (48, 112)], 16)
    falling = (15.5 - torch.arange(16)) / 16
    assert torch.allclose(one, torch.cat([torch.ones(48), falling]))
    assert torch.allclose(two, torch.cat([1 - falling, torch.ones(48)]))


def test_blending_is_the_weighted_mean_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a slow sum over all tiles; a fake network that answers with what it sees, and where its tile's border is."""
    pixels = photo(150, 110)

    def fake(net: object, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(0, 1, x.shape[-1]).expand(1, 1, *x.shape[-2:])
        return torch.cat([x, ramp], 1)

    monkeypatch.setattr(tiles, "probabilities", fake)
    net = segmenter.TrainedSegmenter(torch.nn.Identity(), 4, 32, "fp32")  # type: ignore[arg-type]
    got = torch.cat([p for _, p in tiles.blend_tiles(net, pixels, torch.device("cpu"), 64, 16)], 1)
    want, total = torch.zeros(4, 150, 110), torch.zeros(150, 110)
    down, across = tiles.spans(150, 64, 16), tiles.spans(110, 64, 16)
    for rows, a in zip(down, tiles.weights(down, 16), strict=True):
        for cols, b in zip(across, tiles.weights(across, 16), strict=True):
            at, w = (slice(*rows), slice(*cols)), a[:, None] * b
            want[:, at[0], at[1]] += fake(net, batching.to_tensor(pixels[at])[None])[0] * w
            total[at] += w
    assert torch.allclose(got, want / total, atol=1e-5)
    assert torch.allclose(got[:3], batching.to_tensor(pixels), atol=1e-5)  # no seam where all tiles agree


@pytest.mark.parametrize("size", [(100, 70), (31, 200), (12, 9)])
def test_enlarging_in_bands_is_bilinear(size: tuple[int, int]) -> None:
    p = torch.rand(3, 24, 18)
    got = torch.cat([band for _, band in tiles.upsample(p, size, rows=17)], 1)
    assert torch.allclose(got, F.interpolate(p[None], size, mode="bilinear", align_corners=False)[0], atol=1e-6)


def test_a_crf_in_bands_is_the_crf_where_margins_hold_all(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = photo(90, 60)
    p = torch.rand(3, 90, 60).softmax(0)
    bands = [(0, p[:, :40]), (40, p[:, 40:70]), (70, p[:, 70:])]
    whole = refine(p.numpy(), pixels, CRF)
    wide = list(tiles.refine_bands(iter(bands), pixels, CRF, margin=1000))
    assert (np.concatenate([labels for _, labels, _ in wide]) == whole).all()
    given: list[int] = []  # rows, with the margins
    monkeypatch.setattr(tiles, "refine", lambda p, image, crf: (given.append(len(image)), refine(p, image, crf))[1])
    cut = list(tiles.refine_bands(iter(bands), pixels, CRF, margin=12))
    assert given == [40, 70 - 16, 90 - 46]
    assert [top for top, _, _ in cut] == [0, 28, 58]
    assert torch.equal(torch.cat([q for _, _, q in cut], 1), p)
    assert (np.concatenate([labels for _, labels, _ in cut]) == whole).mean() > 0.97


# ---- the API


def test_a_photograph_by_file_image_and_array(model: Path, tmp_path: Path) -> None:
    Pillow.fromarray(photo()).save(tmp_path / "a.png")
    predictor = unseg.load(model)
    predictions = [
        predictor.predict(x) for x in (tmp_path / "a.png", str(tmp_path / "a.png"), Pillow.fromarray(photo()), photo())
    ]
    net = segmenter.load(model)
    p = segmenter.probabilities(net, batching.to_tensor(photo())[None])[0]
    for prediction in predictions:
        assert (prediction.labels == p.argmax(0).numpy()).all()  # as stages/predict.py has it
        assert np.allclose(prediction.confidence, p.max(0).values.numpy())
    assert len(np.unique(predictions[0].labels)) >= 3
    assert sum(s.fraction for s in predictions[0].fractions()) == pytest.approx(1)
    assert predictions[0].names == {0: "background", 1: "cluster 0", 2: "cluster 1", 3: "cluster 2", 4: "cluster 3"}


def test_what_the_network_sees(model: Path) -> None:
    net, x = segmenter.load(model), photo(50, 90)
    for input_size, size in (("square", (32, 32)), (40, (40, 72))):
        small = np.asarray(Pillow.fromarray(x).resize(size[::-1], Pillow.Resampling.BILINEAR))
        p = segmenter.probabilities(net, batching.to_tensor(small)[None])
        want = F.interpolate(p, (50, 90), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        assert (unseg.load(model, input_size=input_size).predict(x).labels == want).mean() > 0.999


def test_how_a_model_looks_is_known_from_its_file_or_its_run(model: Path, tmp_path: Path) -> None:
    assert unseg.load(model).input_size == "original"
    for folder, want in (("run/models", "square"), ("run", "original")):  # a file that is not in models/ is of no run
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for root in (tmp_path, tmp_path / "run"):
            (root / "params.yaml").write_text("predict: {input: square}")
        shutil.copy(model, tmp_path / folder / "s.safetensors")
        assert unseg.load(tmp_path / folder / "s.safetensors").input_size == want
    net = segmenter.load(model)
    segmenter.write_segmenter(tmp_path / "run/models/t", net.model, net.shape, net.size, net.precision, input_size=48)
    assert unseg.load(tmp_path / "run/models/t").input_size == 48
    assert unseg.load(tmp_path / "run/models/t", input_size="original").input_size == "original"


def test_merging_adds_probabilities_and_ignoring_leaves_void(model: Path, tmp_path: Path) -> None:
    p = segmenter.probabilities(segmenter.load(model), batching.to_tensor(photo())[None])[0].clone()
    often = (1 + np.argsort(-np.bincount(p.argmax(0).flatten().numpy(), minlength=5)[1:])).tolist()  # labels
    void, dog, more, less = (label - 1 for label in often)
    text = f"{{{void}: {{ignore: true}}, {dog}: {{name: dog}}, {more}: {{merge: {dog}}}, {less}: {{merge: background}}}}"
    prediction = unseg.load(model, clusters=clusters_yaml(tmp_path, text)).predict(photo())
    summed = torch.stack([p[0] + p[less + 1], p[dog + 1] + p[more + 1], p[void + 1]])
    want = np.array([0, dog + 1, 255])[summed.argmax(0).numpy()]
    assert len(np.unique(want)) == 3
    assert (prediction.labels == want).all()
    assert np.allclose(prediction.confidence, summed.max(0).values.numpy(), atol=1e-6)
    assert prediction.names == {0: "background", dog + 1: "dog"}
    assert {s.name for s in prediction.fractions()} == {"background", "dog"}
    assert [a["category_id"] for a in prediction.annotations()] == [dog + 1]
    assert (masks.from_rle(prediction.annotations()[0]["segmentation"]).decode() == (want == dog + 1)).all()


def test_a_crf_of_a_small_photograph_is_that_of_relabel(model: Path) -> None:
    p = segmenter.probabilities(segmenter.load(model), batching.to_tensor(photo())[None])[0]
    prediction = unseg.load(model).predict(photo(), CRF)
    assert (prediction.labels == refine(p.numpy(), photo(), CRF)).all()


def test_index_and_overlay(model: Path, tmp_path: Path) -> None:
    predictor = unseg.load(model, clusters=clusters_yaml(tmp_path, "{0: {colour: '#010203'}, 1: {ignore: true}}"))
    prediction = predictor.predict(photo())
    index = prediction.index()
    assert index.mode == "P"
    assert (np.asarray(index) == prediction.labels).all()
    assert index.getpalette()[3:6] == [1, 2, 3]  # type: ignore[index]
    assert max(prediction.overlay().size) >= 320


def test_a_model_says_what_it_needs(model: Path, tmp_path: Path) -> None:
    with safe_open(model, "pt") as file:
        about = json.loads(file.metadata()["unseg"])
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert about == {"format": 1, "kind": "segmenter", "model": SHAPE, "size": 32, "precision": "fp32"}
    for changed, message in (
        ({"format": 2}, "of another version of unseg .its format is 2"),
        ({"format": None}, "of another version"),
        ({"model": {**SHAPE, "width": 8}}, "weights and metadata do not fit"),
        ({"model": {"arch": "resnet18"}}, "weights and metadata do not fit"),
    ):
        save_file(state, tmp_path / "m", {"unseg": json.dumps(about | changed)})
        with pytest.raises(InputError, match=message):
            unseg.load(tmp_path / "m")


def test_what_cannot_be_loaded_or_predicted(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    predictor = unseg.load(model)
    for bad, message in (
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / "text.jpg", "not an image"),
        (np.zeros((4, 4)), "a photograph must be uint8"),
        (np.zeros((4, 40, 3), np.uint8), "at least 8"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.predict(bad)
    with pytest.raises(InputError, match="device nothing cannot be used"):
        unseg.load(model, device="nothing")
    with pytest.raises(InputError, match="the input size is 'huge'"):
        unseg.load(model, input_size="huge")
    with pytest.raises(InputError, match=r"none cannot be read .no such file.; make it with"):
        unseg.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"cannot be read .*; name a segmenter"):
        unseg.load(tmp_path)
    with pytest.raises(InputError, match="there is no cluster 4"):
        unseg.load(model, clusters=clusters_yaml(tmp_path, "{4: {name: a}}"))


def test_unseg_itself_needs_no_torch() -> None:
    code = "import unseg, unseg.serving.cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_frames_are_rgb_and_upright(tmp_path: Path) -> None:
    picture = np.zeros((48, 65, 3), np.uint8)
    picture[:24] = 200, 20, 20  # the upper half is red
    with video.Writer(tmp_path / "new/a.mp4", 5) as sink:
        sink.write(picture)
    reader = video.Reader(tmp_path / "new/a.mp4")
    (frame,) = list(reader)
    assert (frame.shape, reader.count, reader.rate) == ((48, 64, 3), 1, 5)
    assert np.abs(frame[:20].mean((0, 1)) - (200, 20, 20)).max() < 25
    assert frame[28:].mean() < 25
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match=r"text\.mp4 cannot be decoded as a video"):
        video.Reader(tmp_path / "text.mp4")


# ---- instances


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a detector of four clusters, as its weights are drawn."""
    root = tmp_path_factory.mktemp("finder")
    text = (factories.ROOT / "params.yaml").read_text().replace("min_score: 0.05", "min_score: 0.0")
    (root / "params.yaml").write_text(text)
    p = factories.group("detector", Detector, width=8, fpn=16, hidden=16)
    torch.manual_seed(0)
    detector.save(root / "models/detector.safetensors", detector.backend(p).build(p, 4), p, 4)
    return root


@pytest.mark.parametrize("fast", [False, True])
def test_a_model_trained_in_bf16_runs_in_what_the_device_has(
    model: Path, finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda _: fast)
    net, trained = segmenter.load(model), detector.load(finder / "models/detector.safetensors", Detect(64, 0.05, 0.5, 5, 1))
    segmenter.write_segmenter(tmp_path / "s", net.model, net.shape, net.size, "bf16")
    detector.save(tmp_path / "d", trained.model, replace(trained.p, precision="bf16"), trained.k)
    loaded = unseg.load(tmp_path / "s", detector_path=tmp_path / "d")
    assert loaded.detector is not None
    for chosen in (loaded.net.precision, loaded.detector.p.precision):
        assert precision.autocast(loaded.device, chosen)._enabled == fast
    assert unseg.load(model).net.precision == "fp32"  # what was trained in fp32 stays so
    if not fast:
        assert np.array_equal(loaded.predict(photo()).confidence, unseg.load(model).predict(photo()).confidence)


def test_instances_of_a_reduced_photograph_at_its_own_size(
    model: Path, finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that finds the left third and the top half, as clusters 0 and 1, of what it is shown."""
    shapes = []

    def fake(trained: object, x: torch.Tensor, ids: object) -> list[list[Detection]]:
        rows, cols = x.shape[-2:]
        shapes.append((rows, cols))
        third, half = np.zeros((2, rows, cols), bool)
        third[:, : cols // 3], half[: rows // 2] = True, True
        return [[factories.detection(mask, 0.9, category_id=k) for k, mask in enumerate((third, half, third, third))]]

    monkeypatch.setattr(detector, "detect_batch", fake)
    monkeypatch.setattr(api, "DETECT_PIXELS", 60 * 90)
    text = "{0: {name: dog}, 1: {merge: 0}, 2: {ignore: true}, 3: {merge: background}}"
    predictor = unseg.load(model, clusters_yaml(tmp_path, text), finder / "models/detector.safetensors")
    prediction = predictor.predict(photo(120, 180))
    assert shapes == [(60, 90)]
    assert [(i["category_id"], i["bbox"]) for i in prediction.instances] == [(1, [0, 0, 60, 120]), (1, [0, 0, 180, 60])]
    left, top = (masks.from_rle(i["segmentation"]).decode() for i in prediction.instances)
    assert left.shape == (120, 180)
    assert left[:, :60].all()
    assert not left[:, 60:].any()
    assert top[:60].all()
    assert not top[60:].any()
    assert prediction.boxes().size == (320, 213)


def test_predict_writes_instances(model: Path, finder: Path, tmp_path: Path) -> None:
    Pillow.fromarray(photo(96, 128)).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--run", str(finder), "--model", str(model), "--instances", "-o"]
    main([*words, str(tmp_path / "out")])
    coco = json.loads((tmp_path / "out/instances.json").read_text())
    assert coco["images"] == json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert coco["annotations"]
    assert {i["image_id"] for i in coco["annotations"]} == {1}
    assert {i["category_id"] for i in coco["annotations"]} <= {1, 2, 3, 4}
    with Pillow.open(tmp_path / "out/instances/a.png.png") as boxes:
        assert max(boxes.size) == 320
    net = segmenter.load(model)
    segmenter.write_segmenter(tmp_path / "m", net.model, net.shape, net.size, net.precision, ("background", "a", "b", "c", "d"))
    with pytest.raises(SystemExit, match=r"detects clusters that .* does not label; predict without instances"):
        main(["predict", str(tmp_path / "a.png"), "--run", str(finder), "--model", str(tmp_path / "m"), "--instances", "-o", "x"])


# ---- unseg predict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of several formats and sizes, in sub-folders, with odd names, and what is none."""
    root = tmp_path / "my photos"
    (root / "sub folder").mkdir(parents=True)
    Pillow.fromarray(photo()).save(root / "a b.jpg")
    Pillow.fromarray(photo(40, 48, 1)).convert("L").save(root / "sub folder/ä.png")
    Pillow.fromarray(photo(48, 40, 2)).save(root / "sub folder/a b.webp")
    (root / "text.jpg").write_text("hello")
    (root / "notes.txt").write_text("hello")
    sink = cv2.VideoWriter(str(root / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for i in range(3):
        sink.write(photo(48, 64, i))
    sink.release()
    return root


def test_predict_writes_what_it_says(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(
        [
            "predict",
            str(folder),
            "-o",
            str(out),
            "--model",
            str(model),
            "--clusters",
            str(clusters_yaml(tmp_path, "{0: {name: dog}}")),
        ]
    )
    printed = capsys.readouterr().out
    names = ["a b.jpg", "sub folder/a b.webp", "sub folder/ä.png"]
    for name in names:
        with Pillow.open(out / f"labels/{name}.png") as index, Pillow.open(folder / name) as image:
            assert index.mode == "P"
            assert index.size == image.size
        assert (out / f"overlays/{name}.png").stat().st_size
    coco = json.loads((out / "predictions.json").read_text())
    frames = [f"clip.mp4/{i:06d}" for i in range(3)]
    assert [i["file_name"] for i in coco["images"]] == names + frames
    assert [c["name"] for c in coco["categories"]] == ["dog", "cluster 1", "cluster 2", "cluster 3"]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    with Pillow.open(out / "labels/a b.jpg.png") as index:
        for a in (a for a in coco["annotations"] if a["image_id"] == 1):
            assert (masks.from_rle(a["segmentation"]).decode() == (np.asarray(index) == a["category_id"])).all()
    film = cv2.VideoCapture(str(out / "overlays/clip.mp4.mp4"))
    assert int(film.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    image = image_index.ImageRecord(1, "000002", 48, 64, "val")
    assert label_maps.LabelMaps(out / "labels/clip.mp4.zip")[image].shape == (48, 64)
    assert json.loads((out / "skipped.json").read_text())["skipped"] == [
        {"file_name": "text.jpg", "reason": "not an image; give a photograph that Pillow reads"}
    ]
    rows = [line.split("\t") for line in (out / "summary.tsv").read_text().splitlines()[1:]]
    assert sum(float(r[3]) for r in rows if r[0] == names[0]) == pytest.approx(1, abs=1e-3)
    assert "6 pictures" in printed
    assert "1 skipped" in printed
    with pytest.raises(SystemExit, match="exists already; give another folder, or --force"):
        main(["predict", str(folder), "-o", str(out), "--model", str(model)])
    main(["predict", str(folder / "a b.jpg"), "-o", str(out), "--model", str(model), "--force"])


def test_photographs_take_turns_at_the_network_and_keep_their_order(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many").mkdir()
    for i in range(8):
        Pillow.fromarray(photo(32 + 8 * i, 48, i)).save(tmp_path / f"many/{i}.png")
    real, inside, most, threads = tiles.probabilities, [0], [0], set()

    def slow(*given: Any) -> torch.Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threads.add(threading.get_ident())
        time.sleep(0.02)
        answer = real(*given)
        inside[0] -= 1
        return answer

    monkeypatch.setattr(tiles, "probabilities", slow)
    main(["predict", str(tmp_path / "many"), "-o", str(tmp_path / "out"), "--model", str(model)])
    assert most == [1]
    assert len(threads) > 1
    coco = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(i["file_name"], i["height"]) for i in coco["images"]] == [(f"{i}.png", 32 + 8 * i) for i in range(8)]
    for image in coco["images"]:
        alone = unseg.load(model).predict(tmp_path / "many" / image["file_name"])
        with Pillow.open(tmp_path / f"out/labels/{image['file_name']}.png") as index:
            assert (np.asarray(index) == alone.labels).all()


def test_predict_leaves_out_what_it_wrote_itself(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Pillow.fromarray(photo(48, 64)).save(tmp_path / "in/a.png")
    for words in ([], ["--force"]):
        main(["predict", str(tmp_path / "in"), "-o", str(tmp_path / "in/out"), "--model", str(model), *words])
        coco = json.loads((tmp_path / "in/out/predictions.json").read_text())
        assert [i["file_name"] for i in coco["images"]] == ["a.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none", "no such file or folder"),
        ("empty", r"empty has no photograph or video \(empty\)"),
        ("broken", r"broken has no photograph or video \(2 skipped, the first: a.jpg: .+\)"),
        ("text.jpg", "text.jpg: not an image"),
        ("text.mp4", "text.mp4: cannot be decoded as a video"),
    ],
)
def test_predict_refuses_in_one_line(model: Path, tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "broken" / name).symlink_to("missing")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(SystemExit, match=message) as error:
        main(["predict", str(tmp_path / given), "-o", str(tmp_path / "out"), "--model", str(model)])
    assert str(error.value).startswith("error: ")
    assert "\n" not in str(error.value)


def test_what_the_machine_refuses_is_one_line(model: Path, tmp_path: Path) -> None:
    Pillow.fromarray(photo()).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"error: .*a\.png.*: Not a directory$"):
        main(["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.png/out"), "--model", str(model)])


def test_predict_needs_a_run_or_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"params\.yaml: no such file; name the folder of a run, or a model by --model"):
        main(["predict", ".", "-o", "out"])
