"""stages/mine.py and embed.py on drawn scenes with a small random ViT: one mask an image or several, and their tokens."""

from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image as Pillow

from stages import embed, mine, train_foreground
from unseg.core import image_index, instances, masks
from unseg.core.console import InputError
from unseg.core.instances import Instance
from unseg.core.storage import write_json
from unseg.data import demo
from unseg.engine import training
from unseg.mining import affinity, foreground, miner
from unseg.models import vit
from unseg.models.weights import RANDOM_INIT

SIZES = ((64, 64), (48, 80), (64, 64))
VIT = {"weights": RANDOM_INIT, "patch": 8, "width": 32, "depth": 2, "heads": 2}


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


def test_facet_layer_normalisation_and_threshold_count(scenes: Path) -> None:
    choices: list[dict[str, Any]] = [{}, {"layer": 0}, {"normalize": True}, {"threshold": 0.05}]
    choices += [{"facet": facet} for facet in ("queries", "values", "tokens")]
    counts = [[x.mask.counts for x in mined(scenes, **choice)] for choice in choices]
    assert all(a != b for i, a in enumerate(counts) for b in counts[:i])
    assert counts[0] == [x.mask.counts for x in mined(scenes, layer=1)]  # of two blocks the last
    with pytest.raises(InputError, match=r"mine\.layer is 2; this ViT has 2 blocks: from -2 to 1"):
        mined(scenes, layer=2)


def test_every_method_from_its_params(scenes: Path) -> None:
    counts = {"maskdistill": [x.mask.counts for x in mined(scenes)]}
    for method, changes in {
        "tokencut": {"threshold": "otsu"},
        "regions": {"threshold": 0.6, "facet": "tokens"},
        "otsu": {"method": "maskdistill", "threshold": "otsu"},
        "flip": {"method": "maskdistill", "flip": True},
        "scales": {"method": "maskdistill", "scales": [1.0, 1.5]},
    }.items():
        counts[method] = [x.mask.counts for x in mined(scenes, **{"method": method} | changes)]
        assert len(counts[method]) == 3
    assert len({str(x) for x in counts.values()}) == len(counts)


def test_a_head_is_trained_and_mines(scenes: Path) -> None:
    choice = {"size": 64, "iterations": 4, "batch": 2, "facet": "tokens", "center": True, "threshold": 0.0}
    write_params(scenes, foreground=choice, backbone=VIT)
    train_foreground.main("images.json", ".", RANDOM_INIT, "head.safetensors", "head.tsv")
    assert len(Path("head.tsv").read_text().splitlines()) == 5
    first = [x.mask.counts for x in mined(scenes, method="head", head="head.safetensors")]
    two = [x.image_id for x in mined(scenes, method="head", head="head.safetensors", objects=2)]
    assert len(two) > 3  # an image may have one region only
    assert {two.count(i) for i in (5, 6, 7)} <= {1, 2}
    photo = Pillow.open("5.png").convert("RGB")
    model, p = (
        vit.load(vit.Backbone(**VIT)),
        factories.group("mine", affinity.Mining, resize=64, precision="fp32", component=True),
    )
    ((_, pixels),) = miner.load_batches(model, [5], lambda _: (64, 64), lambda _: photo, p)
    with torch.no_grad():
        scores = foreground.load("head.safetensors", model)(vit.tokens(model, pixels)[:, 1:].mT.unflatten(2, (8, 8)))
    want = foreground.masks(scores[0, 0].numpy(), 1, True)[0]
    assert masks.encode(np.kron(want, np.ones((8, 8), bool))).counts == first[0]
    with pytest.raises(InputError, match=r"mine\.method is head, so mine\.head must name a head"):
        mined(scenes, method="head")
    with pytest.raises(InputError, match=r"other\.safetensors cannot be read"):
        mined(scenes, method="head", head="other.safetensors")
    foreground.save("wide.safetensors", torch.nn.Conv2d(48, 1, 1))
    with pytest.raises(InputError, match=r"wide\.safetensors: its weights are"):
        mined(scenes, method="head", head="wide.safetensors")


def test_images_are_normalised_as_the_file_says(scenes: Path) -> None:
    torch.manual_seed(0)
    network = {"arch": "vit_tiny_patch16_224", "patch": 16, "width": 48, "depth": 1, "heads": 3, "prefix_tokens": 1, "image": 32}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, embed_dim=48, depth=1)
    for name, mean in (("a", [0.485, 0.456, 0.406]), ("b", [0.5, 0.25, 0.75])):
        about = {"kind": "vit", "backbone": network | {"mean": mean, "std": [0.5, 0.25, 0.125]}}
        training.write_weights(f"{name}.safetensors", net, about)
    model = vit.load(vit.Backbone("b.safetensors", None, None, None, None))
    photo = Pillow.open("5.png").convert("RGB")
    want = (torch.from_numpy(np.array(photo)) / 255 - torch.tensor([0.5, 0.25, 0.75])) / torch.tensor([0.5, 0.25, 0.125])
    p = factories.group("mine", affinity.Mining, resize=64, objects=1)
    ((_, pixels),) = miner.load_batches(model, [5], lambda _: (64, 64), lambda _: photo, p)
    assert torch.allclose(pixels[0], want.permute(2, 0, 1), atol=1e-6)
    mined(scenes)
    null = dict.fromkeys(("patch", "width", "depth", "heads"))
    write_params(scenes, embed={"region": "image", "resize": 64, "shifts": 1}, embedder={**null, "weights": "b.safetensors"})
    embed.main("images.json", "masks.json", ".", "b.safetensors", "tokens.npz")
    ((_, mask), *_) = [
        (x.image_id, x.mask.decode()) for x in instances.read("masks.json", Instance, image_index.read_images("images.json"))
    ]
    blanked = torch.from_numpy(np.where(mask[..., None], np.array(photo), np.array([128, 64, 191], np.uint8)))  # the mean colour
    pixels = ((blanked / 255 - torch.tensor([0.5, 0.25, 0.75])) / torch.tensor([0.5, 0.25, 0.125])).permute(2, 0, 1)
    with torch.no_grad():
        cls = vit.tokens(model, pixels[None])[0, 0]
    assert np.allclose(np.load("tokens.npz")["tokens"][0], cls.numpy(), atol=1e-4)


def test_descriptors_of_masks(scenes: Path) -> None:
    """Each choice gives other rows; both has twice the channels; a block that is not there is refused before work begins."""
    mined(scenes)

    def embedded(**choice: Any) -> np.ndarray:
        write_params(scenes, embed={"shifts": 1, **choice}, embedder=VIT)
        embed.main("images.json", "masks.json", ".", RANDOM_INIT, "tokens.npz")
        rows: np.ndarray = np.load("tokens.npz")["tokens"]
        return rows

    choices: list[dict[str, Any]] = [{}, {"descriptor": "mean"}, {"layer": 0}, {"shifts": 2}, {"descriptor": "mean", "layer": 0}]
    rows = [embedded(**choice) for choice in choices]
    assert len({x.tobytes() for x in rows}) == len(rows)
    assert np.array_equal(embedded(layer=1), rows[0])  # of two blocks the last
    both = embedded(descriptor="both")
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows[:2]]
    assert np.allclose(both, np.concatenate(unit, 1), atol=1e-5)
    assert {x.tobytes() for x in (embedded(descriptor="mean", region=r) for r in ("box", "image"))}.isdisjoint(
        {rows[1].tobytes()}
    )
    with pytest.raises(InputError, match=r"embed\.layer is 2; this ViT has 2 blocks: from -2 to 1"):
        embedded(layer=2)


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
