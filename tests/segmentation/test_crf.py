"""The CRF (segmentation/crf.py): both methods against a mean field with all pairs of pixels, each other, and a slow loop."""

import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml

from benchmarks.crf import scenes
from unseg.core import optional
from unseg.core.console import InputError
from unseg.core.params import group
from unseg.segmentation import crf as module
from unseg.segmentation.crf import Crf, conv, refine, refine_all

needs_dense = pytest.mark.skipif(not find_spec("pydensecrf"), reason="pydensecrf2 is not installed (g++, Python 3.12 or older)")
METHODS = [pytest.param("dense", marks=needs_dense), "conv"]
PUBLISHED = {
    "iterations": 10,
    "smooth_xy": 1.0,
    "smooth_weight": 3.0,
    "bilateral_xy": 67.0,
    "bilateral_rgb": 3.0,
    "bilateral_weight": 4.0,
}
CRF = Crf("conv", **PUBLISHED, window=64, stride=1)  # type: ignore[arg-type]


@pytest.fixture(params=METHODS)
def crf(request: pytest.FixtureRequest) -> Crf:
    return replace(CRF, method=request.param)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("iterations", 0),
        ("smooth_xy", 0),
        ("bilateral_rgb", -1),
        ("smooth_weight", -1),
        ("window", 0),
        ("stride", 0),
        ("method", "exact"),
    ],
)
def test_crf_refuses(key: str, bad: Any) -> None:
    with pytest.raises(InputError, match=rf"crf\.{key} is {bad!r}; it must"):
        factories.group("crf", Crf, **{key: bad})


def test_crf_reads_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"crf": {k: v if k == "method" else int(v) for k, v in asdict(CRF).items()}})
    )
    assert group("crf", Crf, tmp_path / "params.yaml") == CRF


def softmax(energy: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    p = np.exp(energy - energy.max(0))
    return (p / p.sum(0)).astype(np.float32)


def halves(seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A red and a blue half, RGB [S, S, 3], and probabilities [2, S, S] that are right on average only."""
    rng = np.random.default_rng(seed)
    right = np.arange(size) >= size // 2
    image = np.where(right[None, :, None], (0, 0, 255), (255, 0, 0)) * np.ones((size, 1, 1))
    energy = np.where(right, 0.7, -0.7) + rng.normal(0, 1.0, (size, size))
    return image.astype(np.uint8), softmax(np.stack([-energy, energy]))


def test_colours_correct_noisy_labels(crf: Crf) -> None:
    image, p = halves()
    want = np.repeat([[0] * 8 + [1] * 8], 16, 0)
    assert (p.argmax(0) != want).mean() > 0.1
    assert np.array_equal(refine(p, image, crf), want)
    assert np.array_equal(refine(p[:, :11], image[:11], crf), want[:11])  # not square
    assert np.array_equal(refine(p[:, :, 2:], image[:, 2:], crf), want[:, 2:])


def test_without_weights_nothing_changes(crf: Crf) -> None:
    image, p = halves()
    assert np.array_equal(refine(p, image, replace(crf, smooth_weight=0.0, bilateral_weight=0.0)), p.argmax(0))


def exact(p: np.ndarray, image: np.ndarray, c: Crf) -> np.ndarray:
    """Mean field with all pairs of pixels, no lattice: Q(i, l) ~ exp(log p + sum over kernels of w K Q)."""
    labels, height, width = p.shape
    at = np.indices((height, width)).reshape(2, -1).T.astype(float)  # [N, 2]
    colours = image.reshape(-1, 3).astype(float)
    far, unlike = (((a[:, None] - a) ** 2).sum(-1) for a in (at, colours))  # [N, N]
    smooth = np.exp(-far / (2 * c.smooth_xy**2))
    bilateral = np.exp(-far / (2 * c.bilateral_xy**2) - unlike / (2 * c.bilateral_rgb**2))
    pull = np.zeros_like(far)
    for kernel, weight in ((smooth, c.smooth_weight), (bilateral, c.bilateral_weight)):
        root = np.sqrt(kernel.sum(1))
        pull += weight * kernel / root / root[:, None]
    unary = np.log(p.reshape(labels, -1))
    q = softmax(unary)
    for _ in range(c.iterations):
        q = softmax(unary + q @ pull)
    return np.asarray(q.argmax(0).reshape(height, width))


def test_each_setting_has_its_effect(crf: Crf) -> None:
    rng = np.random.default_rng(1)
    tiles = np.kron(rng.integers(0, 3, (5, 5)), np.ones((4, 4))) * 40 + rng.normal(0, 6, (20, 20)) + 60
    image = np.repeat(tiles[..., None], 3, -1).clip(0, 255).astype(np.uint8)
    truth = np.kron(rng.integers(0, 4, (5, 5)), np.ones((4, 4), int))
    p = softmax(np.eye(4)[truth].transpose(2, 0, 1) * 0.8 + rng.normal(0, 0.8, (4, 20, 20)))
    base = Crf(
        crf.method,
        5,
        smooth_xy=1.0,
        smooth_weight=2.0,
        bilateral_xy=3.0,
        bilateral_rgb=30.0,
        bilateral_weight=3.0,
        window=20,
        stride=1,
    )
    plain = exact(p, image, base)
    assert (plain != p.argmax(0)).mean() > 0.3
    assert (refine(p, image, base) == plain).mean() > 0.94
    others = {"iterations": 1, "smooth_xy": 3.0, "smooth_weight": 6.0, "bilateral_xy": 9.0, "bilateral_rgb": 90.0}
    for key, other in {**others, "bilateral_weight": 8.0}.items():
        c = replace(base, **{key: other})
        got = refine(p, image, c)
        assert (got == exact(p, image, c)).mean() > 0.94, key
        assert (got == plain).mean() < 0.94, key


def test_the_order_of_channels_hardly_matters(crf: Crf) -> None:
    """The published code passes OpenCV's BGR. The kernel is isotropic in colour, its lattice nearly so."""
    rng = np.random.default_rng(0)
    grain = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))) + rng.normal(0, 4, (64, 64, 3))
    image = grain.clip(0, 255).astype(np.uint8)
    p = softmax(np.kron(rng.normal(0, 2, (5, 16, 16)), np.ones((1, 4, 4))))
    a, b = refine(p, image, crf), refine(p, image[..., ::-1], crf)
    assert (a != p.argmax(0)).mean() > 0.05
    assert (a == b).mean() > 0.98


def test_improbable_labels_do_not_change_the_result(crf: Crf) -> None:
    image, two = halves(1, 32)
    rng = np.random.default_rng(0)
    p = np.zeros((9, 32, 32), np.float32)
    p[[2, 7]] = two
    p[[0, 1, 3]] = rng.uniform(0, 9e-6, (3, 32, 32))  # all below MIN_PROBABILITY
    faint = p.copy()
    faint[:, 0, 0] += 2e-5  # all labels are above it in one pixel
    assert np.array_equal(refine(p, image, crf), refine(faint, image, crf))
    assert set(np.unique(refine(p, image, crf))) == {2, 7}


def test_smallest_inputs(crf: Crf) -> None:
    one = np.zeros((1, 1, 3), np.uint8)
    assert refine(np.array([[[0.2]], [[0.5]], [[0.3]]], np.float32), one, crf).tolist() == [[1]]
    assert refine(np.ones((1, 2, 3), np.float32), np.zeros((2, 3, 3), np.uint8), crf).tolist() == [[0] * 3] * 2
    certain = np.zeros((3, 2, 3), np.float32)
    certain[2] = 1
    got = refine(certain, np.zeros((2, 3, 3), np.uint8), crf)
    assert got.tolist() == [[2] * 3] * 2
    assert got.dtype == np.uint8
    with pytest.raises(ValueError, match="257 labels"):
        refine(np.zeros((257, 1, 1), np.float32), one, crf)


def step(p: np.ndarray, image: np.ndarray, c: Crf) -> np.ndarray:
    """One step of mean field, pair by pair, as documented in `conv`, with a window over the whole image. [C, H, W]"""
    _, height, width = p.shape
    reach = int(np.ceil(3 * c.smooth_xy))
    starts = [range(0, n, c.stride) for n in (height, width)]
    lengths = [[min(c.stride, n - s) for s in at] for n, at in zip((height, width), starts, strict=True)]
    centres = [[s + n // 2 for s, n in zip(at, long, strict=True)] for at, long in zip(starts, lengths, strict=True)]
    areas = {
        (y, x): a * b for y, a in zip(centres[0], lengths[0], strict=True) for x, b in zip(centres[1], lengths[1], strict=True)
    }
    pixels = list(np.ndindex(height, width))

    def smooth(i: tuple[int, int], j: tuple[int, int]) -> float:
        dy, dx = abs(i[0] - j[0]), abs(i[1] - j[1])
        return float(np.exp(-(dy**2 + dx**2) / 2 / c.smooth_xy**2)) if max(dy, dx) <= reach else 0.0

    def bilateral(i: tuple[int, int], j: tuple[int, int]) -> float:
        if i == j:
            return 1.0
        colours = ((image[i].astype(float) - image[j].astype(float)) ** 2).sum()
        far = (i[0] - j[0]) ** 2 + (i[1] - j[1]) ** 2
        k = float(np.exp(-far / 2 / c.bilateral_xy**2 - colours / 2 / c.bilateral_rgb**2))
        return k * areas.get(j, 0) if k > 0.05 else 0.0

    energy = np.log(p.astype(float))
    for kernel, weight in ((smooth, c.smooth_weight), (bilateral, c.bilateral_weight)):
        sums = {i: sum(kernel(i, j) for j in pixels) for i in pixels}
        for i in pixels:
            for j in pixels:
                energy[(slice(None), *i)] += weight * kernel(i, j) * p[(slice(None), *j)] / np.sqrt(sums[i] * sums[j])
    return softmax(energy)


@pytest.mark.parametrize(("size", "stride"), [((6, 7), 1), ((9, 8), 3), ((1, 5), 2), ((7, 1), 4), ((4, 4), 9)])
def test_a_step_of_conv_equals_a_slow_loop(size: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (*size, 3)).astype(np.uint8)
    p = softmax(rng.normal(0, 1, (3, *size)))
    c = Crf(
        "conv",
        1,
        smooth_xy=1.3,
        smooth_weight=2.0,
        bilateral_xy=5.0,
        bilateral_rgb=20.0,
        bilateral_weight=3.0,
        window=9,
        stride=stride,
    )
    got = conv(torch.from_numpy(p), torch.from_numpy(image), c).numpy()
    assert np.allclose(got, step(p, image, c), atol=1e-5)
    assert not np.allclose(got, p, atol=0.05)


def test_the_size_of_blocks_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block bounds where its pixels search for senders; with a window over the whole image it only changes the speed."""
    p, image = next(scenes(1, 64))
    many = conv(torch.from_numpy(p), torch.from_numpy(image), replace(CRF, stride=5))
    monkeypatch.setattr(module, "BLOCK", 64)
    assert torch.allclose(many, conv(torch.from_numpy(p), torch.from_numpy(image), replace(CRF, stride=5)), atol=1e-5)


@pytest.mark.parametrize("turns", range(4))
def test_messages_come_only_from_the_window(turns: int) -> None:
    """A row of one colour has label 0 at its far end: with a short window no message arrives from there in one step."""
    image, p = torch.full((1, 200, 3), 9, dtype=torch.uint8), torch.full((2, 1, 200), 0.5)
    p[:, :, 150:] = torch.tensor([0.99, 0.01])[:, None, None]
    end = torch.rot90(torch.arange(200)[None], turns).flatten().argmin()  # position of its first pixel
    image, p = torch.rot90(image, turns), torch.rot90(p, turns, (1, 2))
    short, long = (conv(p, image, replace(CRF, iterations=1, window=w))[0].flatten()[end] for w in (40, 200))
    assert short == pytest.approx(0.5, abs=1e-6)
    assert long > 0.505


@needs_dense
@pytest.mark.parametrize(("size", "least"), [(64, 0.97), (96, 0.985)])
def test_both_methods_agree_on_drawn_scenes(size: int, least: float) -> None:
    c = replace(CRF, stride=4)
    dense, unrefined = [], []
    for p, image in scenes(12, size):
        want = refine(p, image, replace(c, method="dense"))
        dense.append((refine(p, image, c) == want).mean())
        unrefined.append((p.argmax(0) == want).mean())
    assert np.mean(dense) > least
    assert np.mean(unrefined) < 0.94  # the CRF changes labels


def test_conv_does_not_depend_on_the_number_of_threads() -> None:
    p, image = next(scenes(1, 96))
    threads = torch.get_num_threads()
    try:
        maps = set()
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            maps.add(conv(torch.from_numpy(p), torch.from_numpy(image), replace(CRF, stride=4)).numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(maps) == 1


def test_conv_does_not_change_its_inputs() -> None:
    p, image = next(scenes(1, 32))
    p.flags.writeable = image.flags.writeable = False  # as Pillow gives it
    before = p.copy(), image.copy()
    refine(p, image, replace(CRF, stride=4))
    assert np.array_equal(p, before[0])
    assert np.array_equal(image, before[1])


# ---- without pydensecrf


def test_dense_without_pydensecrf_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    p, image = next(scenes(1, 32))
    with pytest.raises(
        InputError, match=r"crf\.method is dense, and pydensecrf is not installed; pip install .* or set crf\.method: conv"
    ):
        refine(p, image, replace(CRF, method="dense"))
    assert refine(p, image, replace(CRF, stride=4)).shape == (32, 32)


def test_conv_does_not_import_pydensecrf_and_the_check_no_torch() -> None:
    conv_alone = "import sys, unseg.segmentation.crf; assert 'pydensecrf' not in sys.modules"
    check_alone = "import sys, unseg.core.optional as m; m.check_crf_method('conv'); assert 'torch' not in sys.modules"
    for code in (conv_alone, check_alone):
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_workers_give_the_same_labels_in_the_same_order(crf: Crf, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    raw = rng.random((7, 3, 12, 16), np.float32)
    items = [(str(n), x / x.sum(0), rng.integers(0, 256, (12, 16, 3), np.uint8)) for n, x in enumerate(raw)]
    crf = replace(crf, iterations=2)
    sequential = list(refine_all(items, crf, len(items)))
    assert [name for name, _ in sequential] == list("0123456")
    assert all(np.array_equal(x, refine(p, image, crf)) for (_, x), (_, p, image) in zip(sequential, items, strict=True))
    monkeypatch.setattr(module, "MIN_IMAGES", 1)
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    parallel = list(refine_all(iter(items), crf, len(items)))
    assert [name for name, _ in parallel] == list("0123456")
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(sequential, parallel, strict=True))
