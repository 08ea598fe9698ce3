"""unseg export and probe: what they write, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import unseg
from unseg.clustering import naming
from unseg.clustering.naming import ClusterEntry
from unseg.core.console import InputError
from unseg.segmentation import segmenter
from unseg.serving import export, few_labels
from unseg.serving.cli.main import main

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {"arch": "resnet18", "width": 4, "stride": 8, "rates": [1, 2, 4], "labels": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "s.safetensors"
    torch.manual_seed(3)
    segmenter.write_segmenter(path, segmenter.DeepLab(**SHAPE), SHAPE, 32, "fp32")
    return path


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")


# ---- export


def test_onnx_is_the_model_at_three_sizes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    (tmp_path / "c.yaml").write_text("clusters: {1: {name: dog}, 2: {merge: 1}}")
    main(["export", "--model", str(model), "--clusters", str(tmp_path / "c.yaml"), "--onnx", str(tmp_path / "m.onnx")])
    net, session = segmenter.load(model).model, runtime.InferenceSession(str(tmp_path / "m.onnx"))
    for shape in ((1, 3, 40, 56), (3, 3, 100, 64), (1, 3, 201, 133)):  # none of those that the export tries
        x = torch.randn(shape)
        with torch.inference_mode():
            want = net(x).numpy()
        (got,) = session.run(None, {"image": x.numpy()})
        assert np.abs(got - want).max() <= 1e-3
        assert (got.argmax(1) == want.argmax(1)).mean() >= 0.999
    about = json.loads({p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}["unseg"])
    names = [(x["name"], x["output_label"]) for x in about["labels"]]
    assert names[:4] == [("background", 0), ("cluster 0", 1), ("dog", 2), ("cluster 2", 2)]
    assert about["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    # a graph that answers otherwise is not kept
    other = segmenter.DeepLab(**SHAPE).eval()
    with pytest.raises(InputError, match="was not kept"):
        export.check_onnx(other, tmp_path / "m.onnx")


def test_torch_export_and_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    there = tmp_path / "m.pt2"
    there.write_text("mine")
    words = ["export", "--model", str(model)]
    for given in ([*words, "--onnx"], [*words, "--torch"], ["compare", ".", ".", "-o"]):
        with pytest.raises(SystemExit, match="exists already; give another name, or --force"):
            main([*given, str(there)])
        with pytest.raises(SystemExit, match="is a folder; give the name of a file"):
            main([*given, str(tmp_path)])
    assert there.read_text() == "mine"
    main([*words, "--torch", str(there), "--force"])
    extra = {"unseg.json": ""}
    again, x = torch.export.load(there, extra_files=extra).module(), torch.randn(2, 3, 50, 70)
    with torch.inference_mode():
        assert torch.allclose(again(x), segmenter.load(model).model(x), atol=1e-5)
    assert json.loads(extra["unseg.json"])["labels"][0]["name"] == "background"


def test_export_wants_a_file(model: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to export; give --onnx FILE or --torch FILE"):
        main(["export", "--model", str(model)])


# ---- few labels


def test_votes_by_hand() -> None:
    maps = [(np.array([[0, 1, 1, 2], [3, 3, 4, 1]]), np.array([[0, 1, 1, 1], [2, 255, 0, 2]]))]
    table = few_labels.votes(maps, 5, 3)
    assert table.tolist() == [[0, 2, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    clusters = few_labels.name_by_votes(table, ["background", "dog", "cat"])
    assert clusters.entries == {
        0: ClusterEntry(name="dog"),
        1: ClusterEntry(merge=1),
        2: ClusterEntry(name="cat"),
        3: ClusterEntry(merge=0),
    }


def test_a_linear_head_finds_classes_that_features_tell_apart(model: Path) -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3):
        labels = rng.integers(0, count, 300)
        features = rng.normal(0, 1, (300, 256)) * np.linspace(0.1, 9, 256) + rng.normal(0, 20, 256)
        features[:, :3] += 4 * np.eye(3)[labels]
        net = few_labels.fit_head(segmenter.load(model), features, labels, ["background", "a", "b"][:count])
        x = torch.from_numpy(features).float()[..., None, None]
        logits = net.model.head[-1](x)[:, :, 0, 0].detach().numpy()  # type: ignore[operator]
        assert (logits.argmax(1) == labels).mean() > 0.99
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features, labels)
        assert np.allclose(logits[:, 1] - logits[:, 0] if count == 2 else logits, fitted.decision_function(features), atol=1e-2)
    with pytest.raises(InputError, match=r"class 1 \(a\) has no labelled cell; label more of it, or, if it is unused, renumber"):
        few_labels.fit_head(segmenter.load(model), features, labels * 2, ["background", "a", "b", "c", "d"])
    with pytest.raises(InputError, match=r"^class 1 has no labelled cell"):
        few_labels.fit_head(segmenter.load(model), features, labels * 2, ["background", *(f"class {c}" for c in range(1, 5))])


@pytest.mark.parametrize(
    ("given", "message"), [("sky,dog,dog", "name: dog, dog; rename"), ("sky,dog,Dog", "name: dog, Dog .*case")]
)
def test_equal_class_names(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        few_labels.class_names(given, tmp_path, 3)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four photographs, left dark and right bright; masks say which, their border unknown."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 60, (64, 96, 3), np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        pixels[:, 48:] += 180
        mask[:, 48:], mask[:, 44:52] = 1, 255
        Pillow.fromarray(pixels).save(tmp_path / f"photos/p {i}.jpg")
        Pillow.fromarray(mask).save(tmp_path / f"masks/p {i}.png")
    return tmp_path


def test_probe_makes_a_segmenter_of_ones_own_classes(model: Path, labelled: Path) -> None:
    words = [str(labelled / "photos"), str(labelled / "masks"), "--model", str(model)]
    (labelled / "masks/classes.txt").write_text("background\nbright\n")
    main(["probe", *words, "-o", str(labelled / "mine.safetensors")])
    assert segmenter.load(labelled / "mine.safetensors").input_size == "original"
    prediction = unseg.load(labelled / "mine.safetensors").predict(labelled / "photos/p 0.jpg")
    assert prediction.names == {0: "background", 1: "bright"}
    truth = np.arange(96) >= 48
    assert ((prediction.labels == 1) == truth).mean() > 0.85
    main(["probe", *words, "--vote", "-o", str(labelled / "voted.yaml")])
    assert naming.read(labelled / "voted.yaml", 4).count == 4
    with pytest.raises(SystemExit, match="exists already"):
        main(["probe", *words, "-o", str(labelled / "mine.safetensors")])
    with pytest.raises(SystemExit, match="the masks have labels up to 1, so 2 names are needed, background first; 1 is given"):
        main(["probe", *words, "--classes", "background", "-o", str(labelled / "x")])
    Pillow.fromarray(np.zeros((5, 5), np.uint8)).save(labelled / "masks/p 0.png")
    with pytest.raises(SystemExit, match=r"p 0\.png is \(5, 5\), its photograph \(64, 96\)"):
        main(["probe", *words, "-o", str(labelled / "x")])
    Pillow.fromarray(np.zeros((5, 5), np.uint8)).save(labelled / "masks/none.png")
    with pytest.raises(SystemExit, match=r"has no photograph none\.jpg"):
        main(["probe", *words, "-o", str(labelled / "x")])


def test_python_m_unseg_has_every_verb() -> None:
    done = subprocess.run([sys.executable, "-m", "unseg", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert all(f"    {verb} " in done.stdout for verb in ("fit", "predict", "clusters", "probe", "export", "compare", "profile"))
