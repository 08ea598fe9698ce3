"""A head on a ViT (segmentation/vit_student.py): tokens, training, file, and what reads the file."""

import json
from pathlib import Path
from typing import Any

import cv2
import factories
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image as Pillow
from torch.nn import functional as F

import unseg
from stages import relabel
from unseg.clustering import naming
from unseg.core import colours, label_maps
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.engine import batching, training
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.training import mix_seeds
from unseg.evaluation import linear_probe
from unseg.models import frozen_tokens, vit
from unseg.models.vit import Backbone
from unseg.models.weights import RANDOM_INIT
from unseg.segmentation import segmenter, vit_student
from unseg.segmentation.segmenter import Predict, Segmenter
from unseg.segmentation.vit_student import ViTStudent
from unseg.serving import export, few_labels
from unseg.serving.cli.main import main

BACKBONE = Backbone(RANDOM_INIT, patch=8, width=32, depth=2, heads=2)
HEADS = ["linear", "conv"]


pytestmark = pytest.mark.usefixtures("scratch_on_cpu")


def setting(**changes: Any) -> Segmenter:
    values = {"arch": "vit", "head": "conv", "channels": 24, "size": 48, "epochs": 12, "lr_milestone": 9, "batch": 4, "lr": 0.05}
    return factories.group("segmenter", Segmenter, **(values | {"hard_pixel_ratio": 0.5, "precision": "fp32"} | changes))


def student(head: str = "conv", labels: int = 3) -> ViTStudent:
    torch.manual_seed(0)
    return vit_student.build(setting(head=head), BACKBONE, labels).eval()


def photographs(folder: Path, count: int = 8, shape: tuple[int, int] = (48, 48)) -> tuple[list[ImageRecord], LabelMaps]:
    """Photographs of a bright (1) or a striped (2) square on dark ground (0), and their label maps; row 0 is ignored."""
    rng, images, maps = np.random.default_rng(0), [], []
    for i in range(count):
        labels = np.zeros(shape, np.uint8)
        y, x = rng.integers(1, 3, 2) * 8
        labels[y : y + 24, x : x + 16] = 1 + i % 2
        pixels = rng.integers(0, 60, (*shape, 3))
        pixels[labels == 1] += 150
        pixels[(labels == 2) & (np.arange(shape[1]) % 4 < 2)] += 190
        labels[0] = IGNORE_LABEL
        Pillow.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        images.append(ImageRecord(i + 1, f"{i}.png", *shape, "both"))
        maps.append((f"{i}.png", labels))
    label_maps.write_label_maps(folder / "labels.zip", maps)
    return images, LabelMaps(folder / "labels.zip")


def learn(folder: Path, p: Segmenter, count: int = 8) -> tuple[ViTStudent, list[dict[str, float]]]:
    images, labels = photographs(folder, count)
    with Checkpoint("segmenter", [p], []) as checkpoint:
        model, values = segmenter.train(p, 2, str(folder), images, labels, 0, checkpoint, "segmenter", BACKBONE)
    assert isinstance(model, ViTStudent)
    return model, values


@pytest.mark.parametrize("tuned_blocks", [0, 1])
def test_a_log_shows_predictions_and_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned_blocks: int
) -> None:
    p = setting(epochs=2, tuned_blocks=tuned_blocks, ema=0.5)
    model, values = learn(tmp_path, p)
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    logged, again = learn(tmp_path, p)
    assert again == values
    assert all(torch.equal(x, logged.state_dict()[key]) for key, x in model.state_dict().items())
    shown = factories.logged_pictures(tmp_path / "logs/segmenter")
    assert set(shown) == {f"pictures/{i}.png" for i in (1, 3, 5, 7)}
    with torch.no_grad():
        x = batching.to_tensor(Pillow.open(tmp_path / "3.png"))[None]
        prediction = model.eval()(x)[0].argmax(0).byte().numpy()  # [48, 48]
    (_, first), (_, last) = shown["pictures/3.png"]
    photo = np.asarray(Pillow.open(tmp_path / "3.png").resize((128, 128), Pillow.Resampling.BILINEAR))
    large = cv2.resize(prediction, (128, 128), interpolation=cv2.INTER_NEAREST_EXACT)
    want = colours.overlay(photo, large, colours.palette(2))
    assert (last[:, 128:] == want).all(2).mean() > 0.9  # but for the outlines, which here are of 48 pixels
    assert (first[:, 128:] != last[:, 128:]).any()


# ---- the network


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (40, 64), (65, 7)])
@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_inputs_size(head: str, size: tuple[int, int]) -> None:
    model, x = student(head, 5), torch.randn(2, 3, *size)
    patches = [-(-side // 8) for side in size]
    with torch.inference_mode():
        assert model(x).shape == (2, 5, *size)
        features = model.features(x)
        assert features.shape == (2, 32, *patches) if head == "linear" else (2, 24, 2 * patches[0], 2 * patches[1])
        logits = F.interpolate(model.head[-1](features), size, mode="bilinear", align_corners=False)
        assert torch.allclose(model(x), logits, atol=1e-5)
        assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)


def test_tokens_are_the_backbones_patches_row_by_row() -> None:
    model, x = student(), torch.randn(2, 3, 24, 40)
    with torch.inference_mode():
        want = vit.tokens(vit.load(BACKBONE), x)[:, 1:]  # [B, h w, D], without CLS
        got = model.tokens(x)
    assert got.shape == (2, 32, 3, 5)
    assert torch.allclose(got[:, :, 2, 1], want[:, 2 * 5 + 1], atol=1e-5)
    assert torch.allclose(got.flatten(2).mT, want, atol=1e-5)


# ---- tokens and labels in memory


def test_tokens_of_each_image_and_of_its_mirror_image(tmp_path: Path) -> None:
    images, labels = photographs(tmp_path, 3)
    model = student()
    data = vit_student.read_tokens(model, setting(size=64), str(tmp_path), images, labels)
    assert (data.tokens.shape, data.tokens.dtype) == ((3, 2, 32, 8, 8), torch.float16)
    assert (data.labels.shape, data.labels.dtype) == ((3, 32, 32), torch.uint8)
    resized = Pillow.open(tmp_path / "1.png").resize((64, 64), Pillow.Resampling.BILINEAR)
    x = batching.to_tensor(resized)[None]
    with torch.inference_mode():
        assert torch.allclose(data.tokens[1, 0].float(), model.tokens(x)[0], atol=5e-3)
        assert torch.allclose(data.tokens[1, 1].float(), model.tokens(x.flip(3))[0], atol=5e-3)
    centres = (2 * np.arange(32) + 1) * 48 // 64
    assert np.array_equal(data.labels[1], labels[images[1]][centres[:, None], centres])


def test_an_example_is_mirrored_with_its_labels(tmp_path: Path) -> None:
    images, labels = photographs(tmp_path, 2)
    data = vit_student.read_tokens(student(), setting(), str(tmp_path), images, labels)
    assert len(data) == 2
    seen = set()
    for seed in range(12):
        x, y = data[1, seed]
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        mirrored = torch.equal(x, data.tokens[1, 1].float())
        seen.add(mirrored)
        assert torch.equal(x, data.tokens[1, int(mirrored)].float())
        assert torch.equal(y.byte(), data.labels[1].flip(1) if mirrored else data.labels[1])
        assert all(torch.equal(a, b) for a, b in zip(data[1, seed], (x, y), strict=True))
    assert seen == {True, False}


def test_tokens_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = photographs(tmp_path, 2)
    monkeypatch.setattr(frozen_tokens.os, "sysconf", lambda name: 1000)  # 1 MB
    with pytest.raises(
        InputError, match=r"tokens of 2 train images at segmenter\.size 800 take 2\.6 GB .*; lower segmenter\.size"
    ):
        frozen_tokens.check_memory((2, 640_000_000), "segmenter.size", 800, "lower segmenter.size")
    with pytest.raises(InputError, match=r"lower segmenter\.size"):
        vit_student.read_tokens(student(), setting(size=800), str(tmp_path), images, labels)


# ---- training


@pytest.mark.parametrize("head", HEADS)
def test_a_short_training_finds_the_squares_and_is_repeatable(tmp_path: Path, head: str) -> None:
    p = setting(head=head)
    model, values = learn(tmp_path, p)
    assert len(values) == 24  # 8 images, 4 a batch
    assert np.mean([v["loss"] for v in values[-4:]]) < 0.5 * np.mean([v["loss"] for v in values[:4]])
    images, labels = photographs(tmp_path)
    net = segmenter.TrainedSegmenter(model.eval(), 3, p.size, "fp32")
    batches = segmenter.load_batches(net, str(tmp_path), images, Predict("original", 10**6))
    right = [(q.argmax(0).numpy() == labels[i])[labels[i] != IGNORE_LABEL].mean() for i, q in segmenter.predict(net, batches)]
    assert np.mean(right) > 0.85
    again, repeated = learn(tmp_path, p)
    assert repeated == values
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_vit_stays_as_it_is(tmp_path: Path) -> None:
    model, _ = learn(tmp_path, setting(epochs=1))
    before = vit.load(BACKBONE).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.vit.state_dict().items())
    assert not any(x.requires_grad for x in model.vit.parameters())
    assert not model.train().vit.training
    assert all(x.requires_grad for x in model.head.parameters())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "arch",
    ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"],
)
def test_tuned_blocks_go_on_where_the_tokens_end(arch: str, count: int) -> None:
    """LayerScale and registers, rotary embeddings, another rotation in each block; incomplete patches."""
    torch.manual_seed(0)
    network = timm.create_model(arch, num_classes=0, img_size=56, depth=3, embed_dim=48, num_heads=3, dynamic_img_size=True)
    for name, x in network.named_parameters():
        if name.endswith(("bias", "gamma", "gamma_1", "gamma_2")):
            torch.nn.init.normal_(x, 0.2, 0.3)
    model = ViTStudent(vit.checked(network, arch), vit_student.build_head("conv", 48, 24, 3)).eval()
    x = torch.randn(2, 3, 60, 60)
    with torch.inference_mode():
        want, tokens = model.head(model.tokens(x)), model.tokens_before(x, count)
    tuned = vit_student.TunedStudent(model, count, 60).eval()
    logits = tuned(tokens.clone())
    torch.testing.assert_close(logits, want.clone(), rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    blocks = list(network.blocks.parameters())
    each = len(blocks) // 3
    assert all(b.grad is None for b in blocks[: (3 - count) * each])
    assert any(b.grad.abs().max() > 0 for b in blocks[-each:] if b.grad is not None)


def test_only_the_tuned_blocks_and_the_head_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []
    real = training.set_lr
    monkeypatch.setattr(training, "set_lr", lambda o, lr: real(o, lr) or rates.append([g["lr"] for g in o.param_groups]))
    model, values = learn(tmp_path, setting(tuned_blocks=1))
    assert rates[0] == pytest.approx([0.05, 0.005])
    assert rates[-1] == pytest.approx([0.005, 0.0005])
    assert np.mean([v["loss"] for v in values[-4:]]) < 0.5 * np.mean([v["loss"] for v in values[:4]])
    before = vit.load(BACKBONE).state_dict()
    changed = {key for key, x in model.vit.state_dict().items() if not torch.equal(x, before[key])}
    assert changed == {key for key in before if key.startswith("blocks.1.")}
    segmenter.save(tmp_path / "s.safetensors", model, setting(), 2, BACKBONE)
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(segmenter.load(tmp_path / "s.safetensors").model(x), model.eval()(x))


@pytest.mark.parametrize("changes", [{"tuned_blocks": 2, "ema": 0.9}, {"ema": 0.9}])
def test_an_interrupted_training_resumes_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    p = setting(epochs=4, **changes)
    model, values = learn(tmp_path, p)
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")
    loss, calls = segmenter.hard_pixel_loss, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(segmenter, "hard_pixel_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, p)
    again, resumed = learn(tmp_path, p)
    assert len(calls) == 6 + 8 - 5  # five of eight steps were kept
    assert resumed == values
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_more_tuned_blocks_than_there_are() -> None:
    with pytest.raises(InputError, match=r"segmenter\.tuned_blocks is 3; models/fresh has 2 blocks"):
        vit_student.build(setting(tuned_blocks=3), BACKBONE, 3)


def test_the_loss_is_of_hard_pixels_at_the_labels_size(tmp_path: Path) -> None:
    p = setting(epochs=1, lr=1e-30, batch=8, hard_pixel_ratio=0.1, momentum=0.0)
    _, values = learn(tmp_path, p)
    images, labels = photographs(tmp_path)
    torch.manual_seed(0)
    model = vit_student.build(p, BACKBONE, 3)
    data = vit_student.read_tokens(model, p, str(tmp_path), images, labels)
    order = np.random.default_rng([0, 0]).permutation(8)
    x, y = (torch.stack(part) for part in zip(*(data[int(i), mix_seeds(0, 0, int(i))] for i in order), strict=True))
    logits = F.interpolate(model.head.train()(x), (24, 24), mode="bilinear", align_corners=False)
    assert values[0]["loss"] == pytest.approx(segmenter.hard_pixel_loss(logits, y, 0.1).item(), rel=1e-4)


def test_one_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training image"):
        learn(tmp_path, setting(), 1)


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"segmenter\.head is 'mlp'; it must be one of linear, conv"):
        setting(head="mlp")


# ---- the file, and what reads it


@pytest.fixture(params=HEADS)
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    p = setting(head=request.param)
    model = student(p.head)
    torch.nn.init.normal_(model.head[-1].weight)  # type: ignore[arg-type]
    segmenter.save(tmp_path / "s.safetensors", model, p, 2, BACKBONE)
    return tmp_path / "s.safetensors"


def test_a_student_is_read_back_from_its_file(file: Path) -> None:
    net = segmenter.load(file)
    assert (net.labels, net.size, net.precision, net.model.training) == (3, 48, "fp32", False)
    assert net.shape["arch"] == "vit"
    model = student("linear" if len(net.model.head) == 2 else "conv")
    model.head.load_state_dict(net.model.head.state_dict())
    x = torch.randn(2, 3, 40, 51)
    with torch.inference_mode():
        assert torch.allclose(net.model(x), model(x), atol=1e-5)
        assert segmenter.probabilities(net, x).sum(1).allclose(torch.ones(2, 40, 51))


def test_prediction_of_photographs_larger_than_a_tile(file: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 800, 3), np.uint8)
    prediction = unseg.load(file).predict(pixels)
    assert prediction.labels.shape == (70, 800)
    assert len(np.unique(prediction.labels)) > 1
    assert ((prediction.confidence > 1 / 3) & (prediction.confidence <= 1)).all()


def test_a_head_for_ones_own_classes(file: Path, tmp_path: Path) -> None:
    net, photo = segmenter.load(file), Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (48, 50, 3), np.uint8))
    mask = np.zeros((48, 50), np.uint8)
    mask[:, 25:] = 1
    cells, classes = few_labels.cell_features(net, photo, mask, "original", torch.device("cpu"), 0)
    fitted = few_labels.fit_head(net, cells, classes, ["left", "right"])
    segmenter.write_segmenter(tmp_path / "own", fitted.model, fitted.shape, 48, "fp32", fitted.names)
    again, x = segmenter.load(tmp_path / "own"), batching.to_tensor(photo)[None]
    assert again.names == ("left", "right")
    assert torch.allclose(segmenter.probabilities(again, x), segmenter.probabilities(fitted, x), atol=1e-5)


def test_a_linear_probe(file: Path, tmp_path: Path) -> None:
    images, labels = photographs(tmp_path)
    p = factories.group("linear", linear_probe.Linear, epochs=4, batch=4, crf=False)
    with Checkpoint("probe", [p], []) as checkpoint:
        probe = linear_probe.train(p, segmenter.load(file), 3, str(tmp_path), images, labels, 0, checkpoint)
    counts, _ = linear_probe.evaluate(probe, str(tmp_path), images, labels, Predict("original", 10**6), None)
    assert counts.sum() == sum((labels[i] != IGNORE_LABEL).sum() for i in images)
    assert np.diag(counts).sum() > 0.8 * counts.sum()


def test_export_to_torch(file: Path, tmp_path: Path) -> None:
    net = segmenter.load(file)
    assert export.to_torch(tmp_path / "m.pt2", net, {}) < 1e-4
    x = torch.randn(2, 3, 50, 71)
    with torch.inference_mode():
        assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(x), net.model(x), atol=1e-4)


def test_export_to_onnx(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = segmenter.load(file)
    difference, agreement = export.to_onnx(tmp_path / "m.onnx", net, {})
    assert difference <= 1e-3
    assert agreement >= 0.999
    x = torch.randn(2, 3, 50, 71)
    (got,) = runtime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"image": x.numpy()})
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(got), net.model(x), atol=1e-3)


def timm_student(arch: str, file: Path) -> ViTStudent:
    """A student of timm's ViT of this name, small, in a file."""
    torch.manual_seed(0)
    shape = {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 3}
    network: Any = vit.checked(timm.create_model(arch, num_classes=0, dynamic_img_size=True, **shape), arch)
    network.pretrained_cfg = {"architecture": arch}
    model = ViTStudent(network, vit_student.build_head("conv", 48, 24, 3)).eval()
    segmenter.save(file, model, setting(), 2, BACKBONE)
    return model


@pytest.mark.parametrize("arch", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_student_of_timms_vit_is_read_back(tmp_path: Path, arch: str) -> None:
    """DINOv3's rotary embeddings have values that no file holds."""
    model, x = timm_student(arch, tmp_path / "s.safetensors"), torch.randn(1, 3, 50, 71)
    with torch.inference_mode():
        torch.testing.assert_close(segmenter.load(tmp_path / "s.safetensors").model(x), model(x))


def test_an_export_that_takes_one_size_is_not_kept(tmp_path: Path) -> None:
    timm_student("vit_small_patch16_dinov3", tmp_path / "s.safetensors")
    words = ["export", "--model", str(tmp_path / "s.safetensors"), "--torch", str(tmp_path / "m.pt2")]
    with pytest.raises(SystemExit, match="it fails for images of 64 x 64 pixels"):
        main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize("arch", ["", pytest.param("vit_small_patch14_reg4_dinov2", marks=pytest.mark.slow)])
def test_onnx_has_patch_tokens_as_a_second_output(tmp_path: Path, arch: str) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if arch:
        timm_student(arch, tmp_path / "s.safetensors")
    else:
        segmenter.save(tmp_path / "s.safetensors", student(), setting(), 2, BACKBONE)
    words = ["export", "--model", str(tmp_path / "s.safetensors"), "--onnx", str(tmp_path / "m.onnx"), "--patch-tokens"]
    main(words)
    names = [output.name for output in onnx.load(tmp_path / "m.onnx").graph.output]
    assert names == ["logits", "patch_tokens"]
    net, x = segmenter.load(tmp_path / "s.safetensors").model, torch.randn(3, 3, 50, 71)
    logits, tokens = runtime.InferenceSession(str(tmp_path / "m.onnx")).run(names, {"image": x.numpy()})
    assert isinstance(net, ViTStudent)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), net(x), atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.from_numpy(tokens), net.tokens(x), atol=1e-3, rtol=0)


def test_patch_tokens_that_there_are_not(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"arch": "resnet18", "width": 4, "stride": 8, "rates": [1, 2, 4], "labels": 5}
    segmenter.write_segmenter(tmp_path / "s.safetensors", segmenter.DeepLab(**shape), shape, 32, "fp32")
    words = ["export", "--model", str(tmp_path / "s.safetensors"), "--patch-tokens"]
    with pytest.raises(SystemExit, match="a resnet18 has no patch tokens; leave out --patch-tokens"):
        main([*words, "--onnx", str(tmp_path / "m.onnx")])
    with pytest.raises(SystemExit, match="add --onnx FILE"):
        main([*words, "--torch", str(tmp_path / "m.pt2")])


def test_an_export_with_other_tokens_is_not_kept(tmp_path: Path) -> None:
    x, model = torch.randn(1, 3, 64, 64), export.WithTokens(student())
    with pytest.raises(InputError, match=r"returns \[\[1, 3, 64, 64\]\], PyTorch \[\[1, 3, 64, 64\], \[1, 32, 8, 8\]\]"):
        export.differences(model, student())
    assert export.differences(model, lambda x: (model(x)[0], model(x)[1] + 0.5))[0] > 0.1
    assert export.differences(model, model)[0] == 0
    assert model(x)[1].shape == (1, 32, 8, 8)


def test_predict_and_probe_on_the_command_line(file: Path, tmp_path: Path) -> None:
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):  # a bright right half; sides that are no multiples of a patch
        pixels = rng.integers(0, 60, (45, 83, 3)) + 150 * (np.arange(83) >= 40)[:, None]
        Pillow.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/{i}.png")
        mask = np.zeros((45, 83), np.uint8)
        mask[:, 40:] = 1
        Pillow.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    words = [str(tmp_path / "photos"), str(tmp_path / "masks"), "--model", str(file)]
    main(["probe", *words, "--classes", "dark,bright", "-o", str(tmp_path / "own.safetensors")])
    labels = unseg.load(tmp_path / "own.safetensors").predict(tmp_path / "photos/0.png").labels
    assert (labels == mask).mean() > 0.9
    main(["probe", *words, "--vote", "-o", str(tmp_path / "voted.yaml")])
    assert naming.read(tmp_path / "voted.yaml", 2).count == 2
    main(["predict", str(tmp_path / "photos"), "--model", str(file), "--size", "60", "--crf", "-o", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 3


def test_a_round_of_self_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moving average labels the photographs from several views, and the confident part trains the next student."""
    p = setting(ema=0.9, tuned_blocks=1)
    model, _ = learn(tmp_path, p)
    segmenter.save(tmp_path / "r0.safetensors", model, p, 2, BACKBONE)
    images, labels = photographs(tmp_path)
    (tmp_path / "images.json").write_text(json.dumps({"images": [vars(i) for i in images]}))
    values = {"crf": False, "flip": True, "scales": [1.0, 1.25], "threshold": 0.7}
    content = {**factories.demo_params(), "refine": [{"from": "r0", "to": "r1", **values}]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    relabel.main("images.json", ".", "r0.safetensors", "r1.zip", "r1")
    maps = LabelMaps("r1.zip")
    kept = np.mean([(maps[i] != IGNORE_LABEL).mean() for i in images])
    assert 0.7 <= kept < 0.75
    known = [(maps[i] != IGNORE_LABEL) & (labels[i] != IGNORE_LABEL) for i in images]
    right = [(maps[i] == labels[i])[k].mean() for i, k in zip(images, known, strict=True)]
    assert np.mean(right) > 0.9
    with Checkpoint("segmenter", [p], ["r1.zip"]) as checkpoint:
        _, history = segmenter.train(p, 2, ".", images, maps, 0, checkpoint, "segmenter", BACKBONE)
    assert np.isfinite([v["loss"] for v in history]).all()


def test_a_vit_with_registers_and_another_normalisation_is_saved_and_loaded(tmp_path: Path) -> None:
    """Its file rebuilds LayerScale, registers and normalisation; photographs are normalised as the ViT wants them."""
    torch.manual_seed(0)
    backbone = vit.build(vit.Shape(8, 32, 2, 2), 48, registers=4, layer_scale=True)
    backbone.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model = ViTStudent(backbone, vit_student.build_head("linear", 32, 24, 3)).eval()
    x = torch.rand(1, 3, 48, 48)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (batching.MEAN, batching.STD))
    tokens = model.tokens((x - mean) / std)
    expected = vit.tokens(backbone, (x - 0.5) / 0.5)[:, 5:]  # CLS and four registers
    assert tokens.shape == (1, 32, 6, 6)
    torch.testing.assert_close(tokens.flatten(2).mT, expected)
    segmenter.save(tmp_path / "s.safetensors", model, setting(head="linear"), 2, BACKBONE)
    loaded = segmenter.load(tmp_path / "s.safetensors").model
    torch.testing.assert_close(loaded((x - mean) / std), model((x - mean) / std))
