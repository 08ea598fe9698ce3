"""stages/mine.py and embed.py on drawn scenes with a small random ViT: one mask an image or several, and their tokens."""

from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from stages import embed, mine
from unseg.core import image_index, instances
from unseg.core.instances import Instance
from unseg.core.storage import write_json
from unseg.data import demo
from unseg.models.weights import RANDOM_INIT

SIZES = ((64, 64), (48, 80), (64, 64))
VIT = {"weights": RANDOM_INIT, "width": 32, "depth": 2, "heads": 2}


def write_params(root: Path, **groups: dict[str, Any]) -> None:
    """The shipped params.yaml with some values of some groups changed."""
    shipped = factories.demo_params()
    (root / "params.yaml").write_text(yaml.safe_dump(shipped | {key: shipped[key] | group for key, group in groups.items()}))


def mined(root: Path, **changed: Any) -> list[Instance]:
    """The instances of data/masks.json for mine with these values changed."""
    write_params(root, mine={"resize": 64, "precision": "fp32", **changed}, backbone=VIT)
    mine.main("images.json", ".", RANDOM_INIT, "masks.json")
    return instances.read("masks.json", Instance, image_index.read_images("images.json"))


def first_masks(objects: list[Instance], count: int) -> dict[int, list[Instance]]:
    """At most `count` masks of each image."""
    by_image: dict[int, list[Instance]] = {}
    for x in objects:
        by_image.setdefault(x.image_id, []).append(x)
    return {image: group[:count] for image, group in by_image.items()}


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    Path(RANDOM_INIT).parent.mkdir()
    Path(RANDOM_INIT).touch()
    records = []
    for n, (h, w) in enumerate(SIZES, 5):
        pixels, _ = demo.scene(np.random.default_rng(n), max(h, w))
        Pillow.fromarray(pixels[:h, :w]).save(f"{n}.png")
        records.append({"id": n, "file_name": f"{n}.png", "height": h, "width": w, "split": "train"})
    write_json("images.json", {"images": records})
    return tmp_path


def test_several_objects_an_image(scenes: Path) -> None:
    one = mined(scenes)
    assert [(x.id, x.image_id) for x in one] == [(5, 5), (6, 6), (7, 7)]
    three = mined(scenes, objects=3, stop=1.0)
    assert [x for x in three if x.id <= 7] == one  # the first of each image does not change
    assert [x.image_id for x in three] == sorted(x.image_id for x in three)
    assert len(three) > 5
    assert sorted(x.id for x in three) == list(range(5, 5 + len(three)))
    two = mined(scenes, objects=2, stop=1.0)
    assert len(two) > 4
    for image, group in first_masks(two, 9).items():
        assert [x.mask for x in group] == [x.mask for x in first_masks(three, 2)[image]]
    for group in first_masks(three, 9).values():
        assert len(group) <= 3
        assert np.sum([x.mask.decode() for x in group], 0).max() == 1
    for method in ("attention", "lost"):
        assert [x.id for x in mined(scenes, method=method, patches=12)] == [5, 6, 7]


def test_tokens_in_either_precision(scenes: Path) -> None:
    mined(scenes)
    tokens = {}
    for precision in ("fp32", "bf16"):
        write_params(scenes, embed={"precision": precision}, embedder=VIT)
        embed.main("images.json", "masks.json", ".", RANDOM_INIT, "tokens.npz")
        tokens[precision] = np.load("tokens.npz")["tokens"]
    error = np.linalg.norm(tokens["bf16"] - tokens["fp32"], axis=1) / np.linalg.norm(tokens["fp32"], axis=1)
    assert error.min() > 1e-4
    assert error.max() < 0.02
