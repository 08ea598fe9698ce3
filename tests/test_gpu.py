"""The same numbers on a GPU as on the CPU, for each step that runs a network: `pytest -m gpu`.

Without a GPU these tests are skipped. With UNSEG_DEVICE=cpu they compare the CPU with itself, which tries them.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from unseg.core import label_maps
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps
from unseg.data import demo, photos
from unseg.detection import detector
from unseg.detection.settings import Detect, Detector
from unseg.engine import environment
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast
from unseg.mining import affinity, miner
from unseg.models import facets, vit
from unseg.models.weights import RANDOM_INIT
from unseg.pretraining import croc_training
from unseg.segmentation import crf, segmenter

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
BACKBONE = vit.Backbone(RANDOM_INIT, patch=8, width=64, depth=3, heads=2)
K = 3


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, or the device that UNSEG_DEVICE names; a scratch folder of the test's own, no loader processes."""
    if not torch.cuda.is_available() and not os.environ.get("UNSEG_DEVICE"):
        pytest.skip("no GPU; UNSEG_DEVICE=cpu tries these tests on the CPU")
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")


def scenes(folder: Path, count: int = 4) -> tuple[list[ImageRecord], LabelMaps, dict[int, Any]]:
    """Drawn scenes, their label maps, and their objects by image."""
    images, maps, objects = [], [], {}
    for i in range(count):
        pixels, drawn = demo.scene(np.random.default_rng(i), 64)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
        labels = np.zeros((64, 64), np.uint8)
        for n, (_, mask) in enumerate(drawn):
            labels[mask] = n % K + 1
        images.append(ImageRecord(i + 1, f"{i}.png", 64, 64, "both"))
        maps.append((f"{i}.png", labels))
        objects[i + 1] = [factories.instance(mask, i + 1, n % K, 10 * i + n + 1) for n, (_, mask) in enumerate(drawn)]
    label_maps.write_label_maps(folder / "labels.zip", maps)
    return images, LabelMaps(folder / "labels.zip"), objects


def both(monkeypatch: pytest.MonkeyPatch, way: Any) -> tuple[Any, Any]:
    """What `way` returns on the CPU and on the device."""
    with monkeypatch.context() as patch:
        patch.setenv("UNSEG_DEVICE", "cpu")
        on_cpu = way()
    return on_cpu, way()


def test_facets_and_final_tokens() -> None:
    net, x = vit.load(BACKBONE), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    device = environment.device()
    with torch.inference_mode():
        on_cpu = (*facets.read(net, x), vit.tokens(net, x))
        net.to(device)
        on_device = (*facets.read(net, x.to(device)), vit.tokens(net, x.to(device)))
        with autocast(device, "bf16"):
            halved = vit.tokens(net, x.to(device)).float()
    for a, b in zip(on_cpu, on_device, strict=True):
        assert b.device.type == device.type
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-2)  # convolutions are in TF32
    torch.testing.assert_close(on_device[3], halved, rtol=0.1, atol=0.1)


def test_mined_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, *_ = scenes(tmp_path)
    p = factories.group("mine", affinity.Mining, resize=128, precision="fp32")

    def mine() -> list[np.ndarray]:
        mined = miner.mine_first_object(vit.load(BACKBONE), images, lambda i: i.size, lambda i: photos.read(tmp_path, i), p)
        return [mask for _, mask in mined]

    for a, b in zip(*both(monkeypatch, mine), strict=True):
        assert (a == b).mean() > 0.97  # a patch whose vote is near 0 may fall on either side


def test_steps_of_croc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, *_ = scenes(tmp_path, 8)
    p = factories.group("croc", croc_training.Croc, epochs=2, batch=4, precision="fp32")

    def train() -> list[dict[str, float]]:
        with Checkpoint("croc", [os.environ.get("UNSEG_DEVICE", "")], []) as checkpoint:
            return croc_training.train(p, BACKBONE.shape(), str(tmp_path), images, 0, checkpoint)[1]

    on_cpu, on_device = both(monkeypatch, train)
    assert len(on_device) == 4
    assert on_device[0]["cls"] == pytest.approx(on_cpu[0]["cls"], rel=1e-2)  # the random draws of clusters differ
    assert on_device[3]["loss"] == pytest.approx(on_cpu[3]["loss"], rel=0.2)


@pytest.mark.parametrize("arch", ["resnet18", "vit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, precision: Any) -> None:
    if precision == "bf16" and environment.device().type == "cpu":
        pytest.skip("a CPU may emulate bfloat16")
    images, maps, _ = scenes(tmp_path)
    p = factories.group("segmenter", segmenter.Segmenter, arch=arch, epochs=3, batch=2, size=64, lr=0.002, precision="fp32")
    backbone = BACKBONE if arch == "vit" else None

    def train() -> tuple[list[dict[str, float]], torch.Tensor]:
        device = environment.device()
        used = p if device.type == "cpu" else replace(p, precision=precision)
        with Checkpoint("segmenter", [device.type, arch, precision], []) as checkpoint:
            net, values = segmenter.train(used, K, str(tmp_path), images, maps, 0, checkpoint, "s", backbone)
        segmenter.save(tmp_path / "s.safetensors", net, used, K, backbone)
        loaded = segmenter.load(tmp_path / "s.safetensors")
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
        loaded.model.to(device)
        return values, segmenter.probabilities(loaded, x).float().cpu()

    (values, a), (others, b) = both(monkeypatch, train)
    tolerance = 0.03 if precision == "fp32" else 0.1
    assert [v["loss"] for v in others] == pytest.approx([v["loss"] for v in values], rel=tolerance)
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, objects = scenes(tmp_path)
    p = factories.group("detector", Detector, iterations=4, batch=2, precision="fp32")
    q = factories.group("detect", Detect, min_score=0.0)

    def train() -> tuple[list[dict[str, float]], int]:
        with Checkpoint("detector", [environment.device().type], []) as checkpoint:
            net, values = detector.train(p, K, str(tmp_path), images, objects, 0, checkpoint)
        trained = detector.prepared(net, p, q, K)
        batches = detector.load_batches(trained, str(tmp_path), images)
        return values, sum(len(found) for _, found in detector.detect(trained, batches))

    (values, _), (others, found) = both(monkeypatch, train)
    assert others[0]["loss"] == pytest.approx(values[0]["loss"], rel=0.1)  # the draws of proposals differ
    assert all(np.isfinite(v["loss"]) for v in others)
    assert found > 0


def test_the_crf() -> None:
    rng = np.random.default_rng(0)
    pixels, drawn = demo.scene(rng, 64)
    truth = np.zeros((64, 64), int)
    for n, (_, mask) in enumerate(drawn):
        truth[mask] = n % K + 1
    p = torch.tensor(np.eye(K + 1)[truth].transpose(2, 0, 1) + rng.uniform(0, 2, (K + 1, 64, 64)), dtype=torch.float32)
    p, image = p / p.sum(0), torch.from_numpy(pixels)
    settings, device = factories.group("crf", crf.Crf, method="conv"), environment.device()
    on_cpu, on_device = (crf.conv(p.to(d), image.to(d), settings).argmax(0).cpu() for d in (torch.device("cpu"), device))
    assert (on_cpu == on_device).float().mean() > 0.99
