"""benchmarks/voc.py: its scores by hand, networks that several choices share, and a toy run that is resumed."""

import json
import os
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from benchmarks import truth_scores, voc, voc_project
from unseg.core import label_maps, storage
from unseg.core.image_index import ImageRecord
from unseg.data import demo
from unseg.engine import training
from unseg.models import facets, vit
from unseg.segmentation import vit_student

SHAPE = vit.Shape(patch=8, width=32, depth=3, heads=2)


def write_truth(path: Path, maps: dict[str, np.ndarray], classes: int) -> Path:
    members = [(f"semantic/{name}.png", storage.encode_png(labels)) for name, labels in maps.items()]
    names = json.dumps({"classes": ["background", *map(str, range(1, classes + 1))]}).encode()
    storage.write_zip(path, [*members, ("classes.json", names)])
    return path


def write_masks(path: Path, images: list[ImageRecord], masks: list[tuple[int, np.ndarray]]) -> Path:
    records = [factories.instance(mask, i, 0, n + 1).to_coco() for n, (i, mask) in enumerate(masks)]
    storage.write_json(path, {"images": [vars(i) for i in images], "annotations": records, "categories": []})
    return path


def columns(*labels: int) -> np.ndarray:
    """A label map of four rows with these columns."""
    return np.tile(np.array(labels, np.uint8), (4, 1))


def test_masks_against_the_truth(tmp_path: Path) -> None:
    images = [factories.image(1, (4, 8)), factories.image(2, (4, 8))]
    maps = {"1.png": columns(0, 0, 1, 1, 2, 2, 255, 0), "2.png": columns(0, 3, 3, 0, 0, 0, 0, 0)}
    truth = write_truth(tmp_path / "truth.zip", maps, 3)
    first, second = columns(0, 1, 1, 1, 0, 0, 1, 0) > 0, columns(0, 0, 0, 0, 1, 0, 0, 0) > 0
    masks = write_masks(tmp_path / "masks.json", images, [(1, first), (1, second)])
    scores = truth_scores.of_masks(masks, truth, images, images)
    # Image 1, in columns: the union has 3 of 4 true ones and one more; image 2 has no mask.
    assert scores["foreground"] == pytest.approx((3 / 5 + 0) / 2)
    assert scores["first"] == pytest.approx((2 / 5 + 0) / 2)
    assert scores["region"] == pytest.approx(((2 / 3 + 1 / 2) / 2 + 0) / 2)
    assert scores["whole"] == pytest.approx((4 / 7 + 2 / 8) / 2)


def test_clusters_against_the_classes(tmp_path: Path) -> None:
    scores = truth_scores.of_clusters(np.array([0, 0, 0, 1, 1, 1]), np.array([5, 5, 2, 2, 2, 2]))
    assert scores["purity"] == pytest.approx(5 / 6)
    assert scores["largest"] == pytest.approx(4 / 6)
    assert truth_scores.of_clusters(np.array([1, 1, 0]), np.array([4, 4, 7]))["ami"] == pytest.approx(1)
    images = [factories.image(1, (4, 8))]
    truth = write_truth(tmp_path / "truth.zip", {"1.png": columns(0, 0, 1, 1, 2, 255, 255, 255)}, 2)
    masks = [factories.instance(columns(*c) > 0, 1, 0, n + 1) for n, c in enumerate(MASKS)]
    assert truth_scores.classes_of(masks, truth, images).tolist() == [1, 2, 0]
    truth_scores.write_true_regions(truth, images, tmp_path / "regions.json")
    regions = json.loads((tmp_path / "regions.json").read_text())["annotations"]
    assert [r["area"] for r in regions] == [8, 4]


MASKS = [(0, 1, 1, 1, 0, 0, 0, 0), (0, 0, 0, 0, 1, 1, 1, 1), (1, 1, 1, 0, 0, 0, 0, 0)]


def test_miou_and_rank_correlation(tmp_path: Path) -> None:
    images = [factories.image(1, (4, 8))]
    truth = write_truth(tmp_path / "truth.zip", {"1.png": columns(0, 0, 1, 1, 2, 2, 255, 0)}, 2)
    label_maps.write_label_maps(tmp_path / "p.zip", [("1.png", columns(0, 0, 3, 3, 1, 1, 1, 0))])
    assert truth_scores.miou(tmp_path / "p.zip", truth, images, 3) == pytest.approx(1)
    rows = [{"score": 1.0, "up": 2.0, "down": 3.0}, {"score": 2.0, "up": 5.0, "down": 1.0}, {"score": 9.0, "up": float("nan")}]
    assert truth_scores.spearman(rows, "score") == {"up": (pytest.approx(1), 2), "down": (pytest.approx(-1), 2)}


def test_shared_networks_give_the_same_facets_and_tokens() -> None:
    torch.manual_seed(0)
    net, x, y = vit.build(SHAPE, 32).eval(), torch.randn(2, 3, 32, 40), torch.randn(2, 3, 32, 40)
    head = vit_student.build_head("linear", SHAPE.width, 8, 3)
    student, memo = vit_student.ViTStudent(net, head).eval(), voc_project.Memo()
    with torch.inference_mode():
        plain = {(f, layer): facets.read(net, x, f, layer) for f in voc_project.FACETS for layer in (0, -1)}
        tokens, other = student.tokens(x), facets.read(net, y)
        with voc_project.shared_networks(memo):
            for (facet, layer), expected in plain.items():
                for a, b in zip(expected, facets.read(net, x, facet, layer), strict=True):
                    torch.testing.assert_close(a, b)
            torch.testing.assert_close(facets.read(net, y).keys, other.keys)
            saved = memo.saved
            for _ in range(2):
                torch.testing.assert_close(student.tokens(x), tokens.half().float(), rtol=0, atol=0)
            assert memo.saved > saved
            with torch.inference_mode(False):
                next(net.blocks[-1].mlp.fc2.parameters()).data *= -50
            assert not torch.allclose(student.tokens(x), tokens, atol=1e-2)


def toy_voc(root: Path) -> None:
    """Drawn scenes in VOC's layout."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(16):
        pixels, drawn = demo.scene(np.random.default_rng(i), 64)
        labels = np.zeros((64, 64), np.uint8)
        for c, mask in drawn:
            labels[mask] = c
        Pillow.fromarray(pixels).save(root / f"JPEGImages/{i}.jpg")
        Pillow.fromarray(labels).save(root / f"SegmentationClass/{i}.png")
    for name, part in (("train", range(10)), ("val", range(10, 16))):
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{i}\n" for i in part))


def test_a_toy_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    toy_voc(tmp_path / "voc")
    torch.manual_seed(0)
    training.write_weights(tmp_path / "vit.safetensors", vit.build(SHAPE, 64), {"kind": "vit", "backbone": vars(SHAPE)})
    chain = {"mine.resize": 64, "cluster.k": 3, "embed.resize": 32, "quality.images": 3, "quality.seeds": 1}
    chain |= {"detector.width": 8, "detector.short_sides": [64], "detector.batch": 2, "detector.iterations": 2}
    chain |= {"segmenter.size": 32, "segmenter.epochs": 1, "segmenter.lr_milestone": 0, "segmenter.batch": 4}
    for name, value in {
        "CHAIN": chain,
        "MINE_BASE": {},
        "CLUSTER_BASE": {},
        "STUDENT": voc.STUDENT | {key: x for key, x in chain.items() if key.startswith("segmenter.")},
        "MINE": [{"mine.facet": "keys"}, {"mine.no": 1}, {"mine.facet": "tokens", "mine.center": False}],
        "EMBED": [{"embed.region": "box"}],
        "CLUSTER": [{"cluster.whiten": "none"}],
        "DEEPLAB": {"segmenter.width": 8},
        "STUDENTS": {"conv-masks": ("masks", {"segmenter.head": "conv", "segmenter.channels": 8})},
        "ROUNDS": {"flip": {"relabel.crf": False, "relabel.flip": True}},
    }.items():
        monkeypatch.setattr(voc, name, value)
    words = ["--into", "run", "--weights", str(tmp_path / "vit.safetensors"), "--data", str(tmp_path / "voc"), "--photos", "4"]

    def run(*more: str) -> tuple[str, list[dict[str, Any]]]:
        os.chdir(tmp_path)
        voc.main([*words, *more])
        rows = [json.loads(line) for line in (tmp_path / "run/rows.jsonl").read_text().splitlines()]
        return capsys.readouterr().out, rows

    out, rows = run("--steps", "mine", "masks")
    assert "mine.no is not a parameter" in out
    assert [r["name"] for r in rows] == ["mine.facet=keys", "mine.facet=tokens mine.center=false", "chain"]
    assert rows[0]["seconds"] > 0
    assert rows[0]["foreground"] != rows[1]["foreground"]
    out, resumed = run()
    assert resumed[:3] == rows
    steps = [r["step"] for r in resumed[3:]]
    assert steps == ["embed", "cluster", "detector", "deeplab", "student", "rounds", "rounds", "rounds"], out
    assert all(0 < r["miou"] < 1 for r in resumed[5:])
    assert resumed[-2]["miou"] != resumed[-1]["miou"]  # of the student's predictions, without and with the CRF
    assert "rank correlation with foreground: " in out
    with pytest.raises(SystemExit, match="belongs to other options"):
        run("--steps", "mine", "--set", "mine.keep=0.1")
