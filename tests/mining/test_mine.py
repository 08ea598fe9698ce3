"""stages/mine.py and embed.py, on drawn scenes with a small random ViT: one mask an image or several, and their tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from stages import embed, mine
from unseg.core.rle import decode, group_by_image
from unseg.core.storage import write_json
from unseg.data import demo
from unseg.models.weights import RANDOM_INIT

SIZES = ((64, 64), (48, 80), (64, 64))


def mined(root: Path, **changed: Any) -> list[dict[str, Any]]:
    """The annotations of data/masks.json for mine with these values changed."""
    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params["mine"] |= {"resize": 64, "precision": "fp32", **changed}
    params["backbone"] |= {"weights": RANDOM_INIT, "width": 32, "depth": 2, "heads": 2}
    (root / "params.yaml").write_text(yaml.safe_dump({key: params[key] for key in ("mine", "backbone", "alarms")}))
    mine.main("images.json", ".", RANDOM_INIT, "masks.json")
    found: list[dict[str, Any]] = json.loads((root / "masks.json").read_text())["annotations"]
    return found


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    Path(RANDOM_INIT).parent.mkdir()
    Path(RANDOM_INIT).touch()
    every = []
    for n, (h, w) in enumerate(SIZES, 5):
        pixels, _ = demo.scene(np.random.default_rng(n), max(h, w))
        Pillow.fromarray(pixels[:h, :w]).save(f"{n}.png")
        every.append({"id": n, "file_name": f"{n}.png", "height": h, "width": w, "split": "train"})
    write_json("images.json", {"images": every})
    return tmp_path


def test_several_objects_an_image(scenes: Path) -> None:
    one = mined(scenes)
    assert [(a["id"], a["image_id"]) for a in one] == [(5, 5), (6, 6), (7, 7)]
    three = mined(scenes, objects=3, stop=1.0)
    assert [a for a in three if a["id"] <= 7] == one  # the first of each, as it was
    assert [a["image_id"] for a in three] == sorted(a["image_id"] for a in three)
    assert len(three) > 5
    assert sorted(a["id"] for a in three) == list(range(5, 5 + len(three)))
    two = group_by_image(mined(scenes, objects=2, stop=1.0))
    assert sum(map(len, two.values())) > 4
    for image, own in two.items():
        assert [a["segmentation"] for a in own] == [a["segmentation"] for a in group_by_image(three)[image][:2]]
    for own in group_by_image(three).values():
        assert len(own) <= 3
        assert sum(decode(a["segmentation"]).astype(int) for a in own).max() == 1  # type: ignore[attr-defined]
    for method in ("attention", "lost"):
        assert [a["id"] for a in mined(scenes, method=method, patches=12)] == [5, 6, 7]


def test_tokens_in_either_precision(scenes: Path) -> None:
    mined(scenes)
    tokens = {}
    for precision in ("fp32", "bf16"):
        params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
        backbone = params["embedder"] | {"weights": RANDOM_INIT, "width": 32, "depth": 2, "heads": 2}
        (scenes / "params.yaml").write_text(
            yaml.safe_dump({"embed": params["embed"] | {"precision": precision}, "embedder": backbone})
        )
        embed.main("images.json", "masks.json", ".", RANDOM_INIT, "tokens.npz")
        tokens[precision] = np.load("tokens.npz")["tokens"]
    off = np.linalg.norm(tokens["bf16"] - tokens["fp32"], axis=1) / np.linalg.norm(tokens["fp32"], axis=1)
    assert off.min() > 1e-4
    assert off.max() < 0.02
