"""The drawn scenes (unseg/data/demo.py): stable bytes, disjoint masks, classes that colour alone does not separate."""

import json
from functools import cache
from pathlib import Path

import factories
import numpy as np
import pytest
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.instances import Instance
from unseg.data.demo import CLASSES, COUNTS, Demo, scene, silhouette, write

SIZE = 64
SCENES = 150


@cache
def drawn(count: int = SCENES, size: int = SIZE) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    return [scene(np.random.default_rng([0, i]), size) for i in range(count)]


def written(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    small = Demo(train=3, val=2, size=48)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, small, seed)
    first, again, other = (written(tmp_path / n) for n in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[k] != other[k] for k in first)
    assert len(set(first.values())) == len(first)  # no two scenes are the same, in both splits


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write(tmp_path / "few", Demo(train=2, val=1, size=48), 0)
    write(tmp_path / "many", Demo(train=4, val=3, size=48), 0)
    few, many = written(tmp_path / "few"), written(tmp_path / "many")
    pictures = [k for k in few if k.endswith(".png")]
    assert len(pictures) == 3
    assert all(few[k] == many[k] for k in pictures)


def test_it_is_written_as_coco(tmp_path: Path) -> None:
    write(tmp_path, Demo(train=4, val=2, size=48), 0)
    ids: list[int] = []
    for split, count in (("train", 4), ("val", 2)):
        coco = json.loads((tmp_path / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in coco["categories"]] == list(CLASSES)
        assert [c["id"] for c in coco["categories"]] == [1, 2, 3, 4, 5, 6]
        assert len(coco["images"]) == count
        ids += [i["id"] for i in coco["images"]]
        assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
        for number, image in enumerate(coco["images"]):
            pixels, objects = scene(np.random.default_rng([0, split == "val", number]), 48)
            assert np.array_equal(Pillow.open(tmp_path / "images" / image["file_name"]), pixels)
            instances = [Instance.from_coco(a) for a in coco["annotations"] if a["image_id"] == image["id"]]
            assert [x.category_id for x in instances] == [label for label, _ in objects]
            assert all(np.array_equal(x.mask.decode(), mask) for x, (_, mask) in zip(instances, objects, strict=True))
    assert ids == list(range(1, 7))  # different in all splits


def test_one_to_three_objects_that_do_not_share_a_pixel() -> None:
    counts, sizes, touched = [], [], 0
    for pixels, objects in drawn():
        assert pixels.shape == (SIZE, SIZE, 3)
        assert pixels.dtype == np.uint8
        masks = np.stack([m for _, m in objects])
        assert masks.dtype == bool
        assert masks.sum(0).max() == 1
        assert masks.any((1, 2)).all()
        counts.append(len(objects))
        sizes += masks.mean((1, 2)).tolist()
        grown = [np.pad(m, 1)[:-2, 1:-1] | m for m in masks]
        touched += any((a & b).any() for i, a in enumerate(grown) for b in grown[:i])
    assert set(counts) == {1, 2, 3}
    assert np.allclose([counts.count(n) / SCENES for n in (1, 2, 3)], COUNTS, atol=0.12)
    assert touched > SCENES * 0.1  # objects do lie in front of one another
    assert min(sizes) > 0.01
    assert max(sizes) < 0.5


def test_all_six_classes_occur_about_as_often() -> None:
    labels = np.array([label for _, objects in drawn() for label, _ in objects])
    fractions = np.bincount(labels, minlength=7) / len(labels)
    assert fractions[0] == 0
    assert (fractions[1:] > 0.08).all()


def test_colour_alone_does_not_tell_the_class() -> None:
    """Nearest class mean of mean colours, fitted on one half of the objects, tested on the other; chance is one in six."""
    colours = np.array([pixels[mask].mean(0) for pixels, objects in drawn() for _, mask in objects])
    labels = np.array([label for _, objects in drawn() for label, _ in objects])
    half = np.arange(len(labels)) % 2 == 0
    for x, bound in ((colours, 0.75), (colours / colours.sum(1, keepdims=True), 0.72)):
        right = 0
        for train in (half, ~half):
            centres = np.stack([x[train & (labels == k)].mean(0) for k in range(1, 7)])
            offsets = (x[~train, None] - centres) / x[train].std(0)
            right += (1 + np.linalg.norm(offsets, axis=2).argmin(1) == labels[~train]).sum()
        assert right / len(labels) < bound


def test_the_background_varies_within_a_scene_as_between_scenes() -> None:
    within, means = [], []
    for pixels, objects in drawn():
        ground = ~np.any([m for _, m in objects], 0)
        corners = [pixels[y : y + 32, x : x + 32][ground[y : y + 32, x : x + 32]] for y in (0, 32) for x in (0, 32)]
        whole = [c.mean(0) for c in corners if len(c) > 100]
        within.append(np.std(whole, axis=0).mean() if len(whole) > 1 else 0)
        means.append(pixels[ground].mean(0))
    assert np.mean(within) > 0.2 * np.std(means, axis=0).mean()


@pytest.mark.parametrize("label", range(6))
def test_silhouettes_stay_in_their_circle_and_differ(label: int) -> None:
    areas = []
    for seed in range(10):
        mask, u, v = silhouette(np.random.default_rng(seed), label, 96)
        assert mask.shape == u.shape == v.shape == (96, 96)
        assert mask.any()
        assert (np.hypot(u, v)[mask] < 1.2).all()
        areas.append(mask.sum())
        others = [silhouette(np.random.default_rng(seed), k, 96)[0] for k in range(6) if k != label]
        assert all((mask & o).sum() / (mask | o).sum() < 0.95 for o in others)
    assert max(areas) > 300


@pytest.mark.parametrize(("key", "value"), [("train", 0), ("val", 0), ("size", 31)])
def test_settings_out_of_range(key: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"demo\.{key} is {value}; it must be at least"):
        factories.group("demo", Demo, **{key: value})
