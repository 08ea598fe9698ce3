"""DeepLab on label maps (segmentation/segmenter.py, deeplab.py, models/resnet.py): loss, augmentation, file, training."""

import json
from pathlib import Path
from typing import Any

import cv2
import factories
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors.torch import save_file
from torch.nn import functional as F

from unseg.core import colours, label_maps
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.engine import batching, event_log, training
from unseg.engine.checkpoint import Checkpoint
from unseg.models import resnet
from unseg.models.weights import RANDOM_INIT
from unseg.segmentation import segmenter
from unseg.segmentation.deeplab import DeepLab
from unseg.segmentation.segmenter import Predict, Segmenter, augment, hard_pixel_loss, learning_rate

RATES = [1, 2, 4]


pytestmark = pytest.mark.usefixtures("scratch_on_cpu")


def setting(**changes: Any) -> Segmenter:
    values = {"arch": "resnet18", "width": 8, "stride": 8, "rates": RATES, "channels": 256, "init": RANDOM_INIT}
    values |= {"frozen_stages": 0, "size": 32, "epochs": 4, "lr_milestone": 2, "batch": 4, "lr": 0.05, "momentum": 0.9}
    values |= {"weight_decay": 1e-4, "hard_pixel_ratio": 0.2, "rotate": 5.0, "scale": 0.25, "border": "ignore"}
    return factories.group("segmenter", Segmenter, **(values | {"precision": "fp32"} | changes))


def net(labels: int = 4, **changed: Any) -> DeepLab:
    torch.manual_seed(0)
    shape = {"arch": "resnet18", "width": 8, "stride": 8, "rates": RATES, "labels": labels} | changed
    return DeepLab(**shape).eval()  # type: ignore[arg-type]


def dataset(folder: Path, count: int = 8, shape: tuple[int, int] = (40, 48)) -> tuple[list[ImageRecord], LabelMaps]:
    """Photographs of a bright (1) or a striped (2) square on dark ground (0), and their label maps."""
    rng, images, maps = np.random.default_rng(0), [], []
    for i in range(count):
        labels = np.zeros(shape, np.uint8)
        y, x = rng.integers(2, 18, 2)
        labels[y : y + 18, x : x + 18] = 1 + i % 2
        pixels = rng.integers(0, 60, (*shape, 3))
        pixels[labels == 1] += 150
        pixels[(labels == 2) & (np.arange(shape[1]) % 4 < 2)] += 190
        Pillow.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        images.append(ImageRecord(i + 1, f"{i}.png", *shape, "train"))
        maps.append((f"{i}.png", labels))
    label_maps.write_label_maps(folder / "labels.zip", maps)
    return images, LabelMaps(folder / "labels.zip")


# ---- the loss


def slow_loss(logits: torch.Tensor, labels: torch.Tensor, ratio: float) -> float:
    """Section A.3 as a loop over pixels."""
    losses = []
    for at in np.ndindex(*labels.shape):
        b, y, x = at
        if labels[at] != IGNORE_LABEL:
            losses.append(-float(logits[b, :, y, x].log_softmax(0)[labels[at]]))
    hardest = sorted(losses, reverse=True)[: int(ratio * labels.numel())]
    return sum(hardest) / len(hardest) if hardest else 0.0


@pytest.mark.parametrize(("ignored", "kept"), [(0, 20), (10, 20), (90, 10), (100, 0)])
def test_the_hardest_fifth_of_all_pixels(ignored: int, kept: int) -> None:
    # docs/spec/maskdistill.md, B.9, acceptance test 6: a fifth of all pixels, ignored ones included, capped by the valid ones
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 10, 10, generator=g, requires_grad=True)
    labels = torch.randint(0, 3, (1, 10, 10), generator=g)
    labels.view(-1)[torch.randperm(100, generator=g)[:ignored]] = IGNORE_LABEL
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_LABEL)[labels != IGNORE_LABEL]
    loss = hard_pixel_loss(logits, labels, 0.2)
    want = losses.sort(descending=True).values[:kept].mean() if kept else torch.tensor(0.0)
    assert torch.isclose(loss, want)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert int((logits.grad.abs().sum(1) > 0).sum()) == kept


def test_five_pixels_by_hand() -> None:
    # losses 1 2 3 4 and an ignored 9; the two hardest of five are 3 and 4
    losses = torch.tensor([1.0, 2, 3, 4, 9])
    logits = torch.stack([torch.zeros(5), losses.expm1().log()])[None, :, None]  # -log softmax of class 0 is the loss
    labels = torch.tensor([0, 0, 0, 0, IGNORE_LABEL])[None, None]
    assert hard_pixel_loss(logits, labels, 0.4).item() == pytest.approx(3.5)
    assert hard_pixel_loss(logits, torch.full_like(labels, IGNORE_LABEL), 0.4).item() == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_loss_equals_a_loop(seed: int, batch: int, side: int, ratio: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(batch, 3, side, 4, generator=g), torch.randint(0, 3, (batch, side, 4), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.4] = IGNORE_LABEL
    if int(ratio * labels.numel()):
        assert hard_pixel_loss(logits, labels, ratio).item() == pytest.approx(slow_loss(logits, labels, ratio), abs=1e-5)


def test_a_loss_that_is_not_a_number_is_not_hidden() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0] = torch.nan
    assert hard_pixel_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64), 0.25).isnan()


def test_learning_rate() -> None:
    # docs/spec/maskdistill.md, B.9, acceptance test 7
    p = setting(lr=0.002, lr_milestone=40)
    assert [learning_rate(p, e) for e in (0, 40, 41, 44)] == pytest.approx([0.002, 0.002, 0.0002, 0.0002])


# ---- augmentation


def unflipped(seed: int, *rest: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
    """`augment` without its flip, which it draws after the angle and the scale."""
    pixels, labels = augment(np.random.default_rng(seed), *rest, **named)
    rng = np.random.default_rng(seed)
    rng.uniform(), rng.uniform()
    return (pixels[:, ::-1], labels[:, ::-1]) if rng.random() < 0.5 else (pixels, labels)


def picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.choice(np.array([0, 1, 7, 255], np.uint8), (height, width))


def test_without_a_change_augment_is_the_identity() -> None:
    pixels, labels = picture(32, 32)
    flips = []
    for seed in range(8):
        out, names = augment(np.random.default_rng(seed), pixels, labels, 32)
        flips.append(not np.array_equal(out, pixels))
        assert np.array_equal(out, pixels[:, ::-1] if flips[-1] else pixels)
        assert np.array_equal(names, labels[:, ::-1] if flips[-1] else labels)
    assert set(flips) == {True, False}


@pytest.mark.parametrize(("height", "width"), [(32, 96), (96, 32), (160, 96)])
def test_resizing_samples_at_centres_and_ignores_the_aspect_ratio(height: int, width: int) -> None:
    pixels, labels = picture(height, width)
    at = [((2 * np.arange(32) + 1) * n // 64) for n in (height, width)]
    for seed in range(4):
        out, names = unflipped(seed, pixels, labels, 32)
        assert np.array_equal(names, labels[at[0][:, None], at[1]])
        assert np.array_equal(out, pixels[at[0][:, None], at[1]])


def test_enlarging_repeats_labels() -> None:
    pixels, labels = picture(16, 16)
    out, names = unflipped(0, pixels, labels, 48)
    assert np.array_equal(names, labels.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(out[1::3, 1::3], pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(9, 70), st.integers(9, 70), st.sampled_from([0, IGNORE_LABEL]))
def test_labels_stay_labels_and_stay_on_their_pixels(seed: int, height: int, width: int, border: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.choice(np.array([1, 2, 3], np.uint8), (-(-height // 8), -(-width // 8))), np.ones((8, 8), np.uint8))
    labels = np.ascontiguousarray(labels[:height, :width])
    pixels = np.repeat(labels[..., None] * 60, 3, 2)
    out, names = augment(rng, pixels, labels, 40, rotate=20.0, scale=0.3, border=border)
    assert out.shape == (40, 40, 3)
    assert names.shape == (40, 40)
    assert out.dtype == names.dtype == np.uint8
    assert set(names.flat) <= {1, 2, 3, border}
    inside = names != border
    right = np.abs(out[..., 0].astype(int) - 60 * names.astype(int)) < 30
    assert right[inside].mean() > 0.6  # all but the borders of blocks
    assert inside.mean() > 0.3


def test_pixels_from_outside_are_black_and_get_the_border_label() -> None:
    pixels, labels = np.full((40, 40, 3), 200, np.uint8), np.full((40, 40), 5, np.uint8)
    fractions = []
    for seed in range(30):
        out, names = augment(np.random.default_rng(seed), pixels, labels, 40, rotate=5.0, scale=0.25, border=IGNORE_LABEL)
        fractions.append((names == IGNORE_LABEL).mean())
        assert (out[names == IGNORE_LABEL].mean(-1) < 180).all()  # black, except at the edge of the image
        assert 5 in names
    assert min(fractions) < 0.01  # enlarged: nothing from outside
    assert 0.3 < max(fractions) <= 1 - 0.75**2 + 0.02
    assert {0, 5} == set(augment(np.random.default_rng(int(np.argmax(fractions))), pixels, labels, 40, 5.0, 0.25, 0)[1].flat)


def test_examples_are_fixed_by_their_seed(tmp_path: Path) -> None:
    images, labels = dataset(tmp_path, 2)
    examples = segmenter.SegmentationDataset(str(tmp_path), images, labels, 32, (5.0, 0.25, IGNORE_LABEL))
    x, y = examples[1, 3]
    assert len(examples) == 2
    assert x.shape == (3, 32, 32)
    assert y.shape == (32, 32)
    assert y.dtype == torch.int64
    assert set(y.unique().tolist()) <= {0, 2, IGNORE_LABEL}
    assert all(torch.equal(a, b) for a, b in zip(examples[1, 3], (x, y), strict=True))
    assert not torch.equal(examples[1, 4][0], x)


# ---- the network


@pytest.mark.parametrize(("stride", "sides"), [(8, [16, 8, 8, 8]), (16, [16, 8, 4, 4]), (32, [16, 8, 4, 2])])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_dilation_keeps_the_resolution(arch: str, stride: int, sides: list[int]) -> None:
    body = resnet.ResNetBackbone(arch, 4, stride).eval()
    maps = body(torch.rand(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == sides
    assert [m.shape[1] for m in maps] == body.channels == [c * (4 if arch == "resnet50" else 1) for c in (4, 8, 16, 32)]


def test_dilations_are_the_published_ones() -> None:
    # docs/spec/maskdistill.md, B.5.1: layer3 dilation 2, layer4 dilation 4; what was strided has half of that
    body = resnet.ResNetBackbone("resnet50", 4, 8)
    dilations = [[b.conv2.dilation[0] for b in getattr(body.net, s)] for s in resnet.STAGES]
    assert dilations == [[1] * 3, [1] * 4, [1, *[2] * 5], [2, 4, 4]]


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_resnet_is_timms_to_the_bit(arch: str, stride: int) -> None:
    """The oracle: names, initial values from the same seed, maps and gradients."""
    from timm.models import resnet as timm  # takes a second

    block, depths = {"resnet18": (timm.BasicBlock, (2, 2, 2, 2)), "resnet50": (timm.Bottleneck, (3, 4, 6, 3))}[arch]
    given = {"channels": (8, 16, 32, 64), "output_stride": stride, "num_classes": 0, "global_pool": ""}
    torch.manual_seed(0)
    theirs = timm.ResNet(block, depths, **given)
    torch.manual_seed(0)
    ours = resnet.ResNetBackbone(arch, 8, stride).net
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {k: v.tolist() for k, v in theirs.state_dict().items()}
    x = torch.randn(2, 3, 65, 70)
    for model in (theirs, ours):
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.constant_(part.weight, 0.7)  # the last one of a block begins at 0
    want, got = theirs.forward_features(x), ours(x)[-1]
    assert torch.equal(got, want)
    want.square().mean().backward()
    got.square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(ours.eval()(x)[-1], theirs.eval().forward_features(x))


def test_the_head_is_torchvisions_to_the_bit() -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # takes seconds

    torch.manual_seed(0)
    resnet.ResNetBackbone("resnet18", 4, 8)
    theirs = torch.nn.Sequential(*DeepLabHead(32, 5, RATES))
    torch.manual_seed(0)
    ours = DeepLab("resnet18", 4, 8, RATES, 5).head
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {k: v.tolist() for k, v in theirs.state_dict().items()}
    x = torch.randn(2, 32, 9, 7)
    for mode in (True, False):
        outputs = []
        for head in (theirs.train(mode), ours.train(mode)):
            torch.manual_seed(1)  # of dropout
            outputs.append(head(x))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (40, 64), (65, 7)])
def test_logits_have_the_inputs_size(size: tuple[int, int]) -> None:
    model = net(5)
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert model(x).shape == (1, 5, *size)
        assert model.features(x).shape[1] == 256
        both = model(torch.cat([x, torch.randn_like(x)]))
        assert torch.allclose(both[:1], model(x), atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_stages_stay_as_they_are(frozen: int) -> None:
    torch.manual_seed(0)
    model = DeepLab("resnet18", 8, 8, RATES, 3, frozen).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.1, weight_decay=0.1)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    parts = tuple(f"body.net.{n}." for n in (("conv1", "bn1", *resnet.STAGES[:frozen]) if frozen else ()))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.startswith(parts)} if parts else "body.net.bn1.running_mean" in changed
    assert {k for k in before if not k.startswith(parts or "-") and "running" in k} <= changed
    assert {k for k in before if not k.startswith(parts or "-") and "conv" in k and "weight" in k} <= changed


# ---- the file


def test_a_segmenter_is_read_back_from_its_file(tmp_path: Path) -> None:
    p = setting(rates=[2, 3], stride=16, precision="bf16")
    model = net(4, rates=[2, 3], stride=16)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    segmenter.save(tmp_path / "s.safetensors", model, p, 3)
    again = segmenter.load(tmp_path / "s.safetensors")
    assert (again.labels, again.size, again.precision) == (4, 32, "bf16")
    assert not again.model.training
    x = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        assert torch.equal(model(x.to(memory_format=torch.channels_last)), again.model(x.to(memory_format=torch.channels_last)))


def test_files_that_are_not_a_segmenter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none cannot be read"):
        segmenter.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="text cannot be read"):
        segmenter.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other", {"unseg": json.dumps({"kind": "detector"})})
    with pytest.raises(InputError, match="other is a detector of unseg, not a segmenter"):
        segmenter.load(tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare")
    with pytest.raises(InputError, match="bare has no metadata of unseg"):
        segmenter.load(tmp_path / "bare")


def predict(
    net: segmenter.TrainedSegmenter, folder: Path, images: list[ImageRecord], kind: str, pixels: int = 10**6
) -> dict[int, torch.Tensor]:
    q = factories.group("predict", Predict, input=kind, pixels=pixels)
    return {image.id: p for image, p in segmenter.predict(net, segmenter.load_batches(net, str(folder), images, q))}


@pytest.mark.parametrize("kind", ["original", "square"])
def test_every_photograph_has_probabilities_at_its_size(tmp_path: Path, kind: str) -> None:
    images = dataset(tmp_path, 3)[0]
    Pillow.fromarray(picture(21, 35)[0]).save(tmp_path / "odd.png")
    images.append(ImageRecord(9, "odd.png", 21, 35, "val"))
    trained = segmenter.TrainedSegmenter(net(4), 4, 32, "fp32")
    by_id = predict(trained, tmp_path, images, kind)
    assert by_id.keys() == {1, 2, 3, 9}
    for image in images:
        p = by_id[image.id]
        assert p.shape == (4, *image.size)
        assert torch.allclose(p.sum(0), torch.ones(image.size), atol=1e-5)
    single = predict(trained, tmp_path, images, kind, pixels=1)  # batches of one
    assert all(torch.allclose(by_id[i], single[i], atol=1e-5) for i in by_id)
    if kind == "original":
        x = batching.to_tensor(Pillow.open(tmp_path / "odd.png"))
        with torch.inference_mode():
            assert torch.allclose(by_id[9], trained.model(x[None])[0].softmax(0), atol=1e-5)


# ---- the training


def learn(folder: Path, p: Segmenter, count: int = 8) -> tuple[DeepLab, list[dict[str, float]]]:
    images, labels = dataset(folder, count)
    with Checkpoint("segmenter", [p], []) as checkpoint:
        return segmenter.train(p, 2, str(folder), images, labels, 0, checkpoint, "segmenter")


def test_a_short_training_lowers_the_loss_and_is_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = training.set_lr
    monkeypatch.setattr(training, "set_lr", lambda o, lr: rates.append(lr) or real(o, lr))
    p = setting(epochs=8, lr_milestone=6)
    model, values = learn(tmp_path, p)
    assert len(values) == 16  # 8 images, 4 a batch
    assert rates == pytest.approx([0.05] * 14 + [0.005] * 2)
    losses = [v["loss"] for v in values]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    again, repeated = learn(tmp_path, p)
    assert repeated == values
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_moving_average_of_weights_and_statistics_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []  # after each step
    real = training.fit

    def fit(what: str, checkpoint: Checkpoint, state: dict[str, Any], *rest: Any, **named: Any) -> Any:
        def step(number: int, batch: Any) -> Any:
            values = rest[-1](number, batch)
            states.append({k: v.clone() for k, v in state["model"].state_dict().items()})
            return values

        return real(what, checkpoint, state, *rest[:-1], step, **named)

    monkeypatch.setattr(training, "fit", fit)
    model, values = learn(tmp_path, setting(epochs=3, ema=0.6))
    assert len(states) == 6
    average = {k: v.double() for k, v in states[0].items()}
    for state in states[1:]:
        average = {k: 0.6 * average[k] + 0.4 * v.double() for k, v in state.items()}
    for key, x in model.state_dict().items():
        if x.is_floating_point():
            torch.testing.assert_close(x.double(), average[key], rtol=1e-4, atol=1e-6, msg=key)
    last = states[-1]
    changed = {k for k, v in model.state_dict().items() if v.is_floating_point() and not torch.allclose(v, last[k])}
    assert {"body.net.conv1.weight", "body.net.bn1.running_mean", "head.4.bias"} <= changed
    without, plain = learn(tmp_path, setting(epochs=3, ema=0.0))
    assert plain == values  # the training is the same
    assert all(torch.equal(v, last[k]) for k, v in without.state_dict().items())


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_a_log_shows_predictions_and_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float) -> None:
    p = setting(epochs=15, lr_milestone=12, ema=ema, frozen_stages=1)
    model, values = learn(tmp_path, p)
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setattr(event_log, "LEAST_STEPS", 10)
    logged, again = learn(tmp_path, p)
    assert again == values
    assert all(torch.equal(x, logged.state_dict()[key]) for key, x in model.state_dict().items())
    shown = factories.logged_pictures(tmp_path / "logs/segmenter")
    assert set(shown) == {f"pictures/{i}.png" for i in (1, 3, 5, 7)}
    for i in (1, 3, 5, 7):
        steps, pictures = zip(*shown[f"pictures/{i}.png"], strict=True)
        assert steps == (0, 10, 20, 30)
        assert {x.shape for x in pictures} == {(128, 256, 3)}
        photo, labels = Pillow.open(tmp_path / f"{i}.png"), LabelMaps(tmp_path / "labels.zip")
        large = np.asarray(photo.resize((128, 128), Pillow.Resampling.BILINEAR))
        target = cv2.resize(labels[dataset(tmp_path)[0][i]], (128, 128), interpolation=cv2.INTER_NEAREST_EXACT)
        assert all((x[:, :128] == colours.overlay(large, target, colours.palette(2))).all() for x in pictures)
        with torch.no_grad():
            x = batching.to_tensor(photo.resize((32, 32), Pillow.Resampling.BILINEAR))[None]
            logits = F.interpolate(model.eval()(x), (128, 128), mode="bilinear", align_corners=False)
        last = colours.overlay(large, logits[0].argmax(0).byte().numpy(), colours.palette(2))
        assert (pictures[-1][:, 128:] == last).all()  # of the weights that are saved
        assert (pictures[0][:, 128:] != last).any()


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"frozen_stages": 2}, {"arch": "resnet50", "width": 4}])
def test_other_settings_train(tmp_path: Path, changed: dict[str, Any]) -> None:
    model, values = learn(tmp_path, setting(epochs=1, **changed))
    assert len(values) == 2
    assert all(np.isfinite(v["loss"]) for v in values)
    assert model.head[-1].out_channels == 3


@pytest.mark.parametrize(("border", "label"), [("ignore", IGNORE_LABEL), ("background", 0)])
def test_training_augments_as_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, border: str, label: int) -> None:
    datasets: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda name, checkpoint, state, dataset, *rest, **named: datasets.append(dataset) or [])
    learn(tmp_path, setting(rotate=3.0, scale=0.1, border=border, size=40))
    assert (datasets[0].size, datasets[0].warp) == (40, (3.0, 0.1, label))


@pytest.mark.parametrize("count", [1, 0])
def test_too_few_photographs(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="training image"):
        learn(tmp_path, setting(), count)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    body = resnet.ResNetBackbone("resnet18", 8)
    save_file(body.net.state_dict(), tmp_path / "w.safetensors")
    other = resnet.ResNetBackbone("resnet18", 8, 8)
    resnet.initialise(other, str(tmp_path / "w.safetensors"), "segmenter")
    assert all(torch.equal(a, b) for a, b in zip(body.net.state_dict().values(), other.net.state_dict().values(), strict=True))
    with pytest.raises(InputError, match=r"w\.safetensors: .* has shape .*, segmenter in params\.yaml needs"):
        resnet.initialise(resnet.ResNetBackbone("resnet18", 16), str(tmp_path / "w.safetensors"), "segmenter")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch", "vgg"),
        ("width", 0),
        ("frozen_stages", 5),
        ("stride", 4),
        ("hard_pixel_ratio", 0.0),
        ("ema", 1.0),
        ("tuned_blocks", -1),
        ("border", "black"),
        ("batch", 1),
        ("precision", "x"),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"segmenter\.{key}"):
        setting(**{key: value})


def test_predict_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"predict\.input is 'small'; it must be one of original, square"):
        factories.group("predict", Predict, input="small")
