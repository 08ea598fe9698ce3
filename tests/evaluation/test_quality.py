"""Quality without labels: by hand, on blobs, and the stages and their alarms on a small run."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml
from factories import clustering, token_blobs
from PIL import Image as Pillow
from safetensors.torch import save_file

from stages import choose_k, cluster, evaluate_quality, mine
from unseg.core.console import InputError
from unseg.core.instances import Instance
from unseg.core.label_maps import write_label_maps
from unseg.core.storage import read_json, write_json, write_npz
from unseg.evaluation.label_free import quality, stability
from unseg.models import vit
from unseg.report import label_free

# ---- pure functions


def test_fractions_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[:, :2] = True  # of the rim of 14 pixels: 4 left, and 2 of the top and bottom rows
    assert quality.border(mask) == pytest.approx(6 / 14)
    assert quality.border(np.ones((1, 1), bool)) == 1
    assert quality.balance(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert quality.balance(np.array([5, 5, 0, 0])) == pytest.approx(0.5)
    assert quality.balance(np.array([9, 0])) == 0
    assert quality.balance(np.array([9])) == 1
    other = np.zeros((4, 5), bool)
    other[:, 1:3] = True
    assert quality.binary_iou(mask, other) == pytest.approx(4 / 12)
    assert quality.binary_iou(~mask & mask, ~mask & mask) == 1
    assert quality.foreground(np.array([[0, 1, 1, 255]], np.uint8)).tolist() == [[False, True, True, False]]
    image = factories.image(1, (4, 5))
    assert quality.measure_masks([image, image], [factories.instance(mask)]) == pytest.approx(
        {"mask_missing": 0.5, "mask_area": 8 / 20, "mask_border": 6 / 14}
    )
    assert math.isnan(quality.measure_masks([image], [])["mask_area"])


def test_agreement_of_two_maps_by_hand() -> None:
    one, two = np.array([[1, 1, 2, 0, 255]], np.uint8), np.array([[1, 2, 2, 2, 2]], np.uint8)
    assert quality.agreement(one, two) == (3 / 5, 3, 2)


def test_clusters_that_are_there_are_found_again_and_others_not() -> None:
    tokens, names = token_blobs((40, 40, 40))
    p, q = clustering(), quality.Quality(images=0, seeds=3, objects=100)
    real = quality.measure_clusters(tokens, names, p, q, 0)
    assert real["cluster_stability"] == pytest.approx(1)
    assert real["cluster_silhouette"] > 0.8
    assert (real["cluster_balance"], real["clusters_empty"]) == (pytest.approx(1), 0)
    chance = quality.measure_clusters(tokens, np.random.default_rng(0).permutation(names), p, q, 0)
    assert chance["cluster_silhouette"] < 0.1
    assert chance["cluster_stability"] < 0.6  # K-means agrees with itself, not with these
    noise = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float32)
    assert quality.seed_stability(noise, names, clustering(k=8, starts=1), (1, 2, 3)) < 0.6
    assert math.isnan(quality.silhouette(tokens, np.zeros(120, int), clustering(), 100, 0))
    assert math.isnan(quality.seed_stability(tokens, names, p, ()))


def test_a_view_is_compared_where_it_shows_the_same() -> None:
    image, mask = factories.image(1, (8, 8), "train", "a.png"), np.zeros((8, 8), bool)
    mask[2:6, 1:4] = True  # rows and columns 1 to 6 are the middle
    flipped, cropped = (stability.View(image, mask, f) for f in (True, False))
    assert flipped.size == (8, 8)
    assert cropped.size == (6, 6)
    one, two = flipped.align(mask[:, ::-1]) or ()
    assert (one == two).all()
    one, two = cropped.align(mask[1:7, 1:7]) or ()
    assert (one == two).all()
    corner = np.zeros((8, 8), bool)
    corner[:2, :2] = True
    assert stability.View(image, corner, False).align(np.ones((6, 6), bool)) is None
    assert stability.window((1, 1)) == (slice(0, 1), slice(0, 1))


def test_stability_is_what_exceeds_chance() -> None:
    left, right, whole = np.zeros((4, 8), bool), np.zeros((8, 4), bool), np.ones((5, 5), bool)
    left[:, :4], right[:, 2:] = True, True
    assert stability.iou_above_chance([(left, left), (right, right)]) == 1
    assert stability.iou_above_chance([(left, right.T[:, ::1]), (right, right)]) < 1
    assert stability.iou_above_chance([(whole, whole)] * 3) == 0  # stable, and of no use
    # IoUs: left with whole 1/2 and with itself 1, whole with left 1/2: own (1/2 + 1/2) / 2, other (1 + 1) / 2
    assert stability.iou_above_chance([(left, whole), (whole, left)]) == 0
    # own 1/2 and 1/2; other: left with left's other half 0, whole with whole 1
    half = ~left
    assert stability.iou_above_chance([(left, whole), (whole, half)]) == pytest.approx((0.5 - 0.5) / 0.5)
    assert stability.iou_above_chance([(left, left), (half, left)]) == pytest.approx((0.5 - 0.5) / 0.5)
    assert stability.iou_above_chance([(left, left), (half, half), (half, half)]) == pytest.approx((1 - 1 / 3) / (1 - 1 / 3))
    assert stability.iou_above_chance([(left, left), (half, whole)]) == pytest.approx((0.75 - 0.25) / 0.75)
    assert math.isnan(stability.iou_above_chance([(left, left)]))


def test_a_view_shows_what_it_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    image = factories.image(1, (8, 6), "train", "a.png")
    views = [stability.View(image, np.ones((8, 6), bool), f) for f in (True, False)]
    assert (np.asarray(views[0].read(tmp_path)) == pixels[:, ::-1]).all()
    assert (np.asarray(views[1].read(tmp_path)) == pixels[stability.window((8, 6))]).all()
    assert np.asarray(views[1].read(tmp_path)).shape[:2] == views[1].size == (6, 4)


# ---- the stages

N, SIDE = 6, 32
PARAMS: dict[str, Any] = {
    "seed": 0,
    "backbone": {"weights": "vit.safetensors", "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "mine": {**factories.MINE, "resize": 32},
    "cluster": asdict(clustering(k=2)),
    "quality": {"images": 4, "seeds": 2, "objects": 10},
    "choose": {"ks": [2], "repeats": 2, "objects": 100, "starts": 1},
    "alarms": {
        "masks": {"min_images": 50, "max_missing": 0.5, "min_area": 0.0, "max_area": 1.0},
        "segmentation": {"min_images": 50, "min_clusters": 2},
    },
}
FILES = ("masks.json", "tokens.npz", "instances.json", "labels.zip", "m.zip", "d.zip", "f.zip")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six photographs, the last two held out, mined by an untrained ViT; maps in which every stage says the same."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
    rng = np.random.default_rng(0)
    index = []
    for i in range(N):
        Pillow.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(f"{i}.png")
        index.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE, "split": "val" if i > 3 else "train"})
    write_json("images.json", {"images": index})
    backbone = vit.Backbone(**PARAMS["backbone"])
    torch.manual_seed(0)
    save_file(vit.build(backbone.shape(), 32).state_dict(), "vit.safetensors")
    mine.main("images.json", ".", "vit.safetensors", "masks.json")
    mined = read_json("masks.json")
    write_json("instances.json", mined | {"annotations": [{**a, "category_id": a["id"] % 2} for a in mined["annotations"]]})
    write_npz("tokens.npz", ids=np.arange(N), tokens=rng.normal(size=(N, 4)).astype(np.float32))
    maps = [
        (f"{x.image_id}.png", (x.mask.decode() * (1 + x.id % 2)).astype(np.uint8))
        for x in map(Instance.from_coco, mined["annotations"])
    ]
    write_label_maps("labels.zip", maps[:4])
    for name in ("m.zip", "d.zip", "f.zip"):
        write_label_maps(name, maps[4:])


def go() -> dict[str, Any]:
    evaluate_quality.main("images.json", ".", "vit.safetensors", *FILES, "few.json", "quality.json")
    numbers, few = (json.loads(Path(name).read_text()) for name in ("quality.json", "few.json"))
    shown = ("cluster_stability", "mask_flip", "mask_missing")  # by `dvc metrics show`
    assert few == {key: numbers[key] for key in shown if numbers[key] is not None}
    return dict(numbers)


def test_the_stage_writes_what_the_report_shows(run: None) -> None:
    numbers = go()
    assert {key for key, _, _ in label_free.QUALITY} < numbers.keys()
    assert (numbers["images"], numbers["eval_images"], numbers["mined_again"], numbers["seeds"]) == (6, 2, 4, [0])
    assert numbers["mask_missing"] == 0
    assert numbers["clusters_used"] == 2
    for pair in ("masks_detector", "masks_final", "detector_final"):
        assert (numbers[f"foreground_{pair}"], numbers[f"cluster_{pair}"]) == (1, 1)
    assert -1 < numbers["mask_flip"] < 1
    assert -1 < numbers["mask_crop"] < 1
    first = Path("quality.json").read_bytes()
    go()
    assert Path("quality.json").read_bytes() == first
    names = {fact.name for fact in label_free.quality(numbers)}
    assert "silhouette of clusters" in names
    assert label_free.quality(numbers)[-1].value == "2 of 2"


def test_stability_is_one_where_mining_sees_no_sides(run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT that does not know places, and patches of one colour each: the mirrored photograph has the mirrored mask."""
    state = vit.build(vit.Backbone(**PARAMS["backbone"]).shape(), 32).state_dict()
    save_file(state | {"pos_embed": state["pos_embed"] * 0}, "vit.safetensors")
    for i in range(N):
        colours = np.random.default_rng(i).integers(0, 256, (4, 4, 3))
        Pillow.fromarray(np.kron(colours, np.ones((8, 8, 1))).astype(np.uint8)).save(f"{i}.png")
    mine.main("images.json", ".", "vit.safetensors", "masks.json")
    assert go()["mask_flip"] == 1
    content = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(content | {"quality": {"images": 0, "seeds": 0, "objects": 0}}))
    numbers = go()
    assert numbers["mask_flip"] is numbers["mask_crop"] is numbers["cluster_stability"] is numbers["cluster_silhouette"] is None


def test_a_collapsed_segmentation_fails_after_it_was_measured(run: None) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["alarms"]["segmentation"]["min_images"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(content))
    go()
    write_label_maps("f.zip", [(f"{i}.png", np.zeros((SIDE, SIDE), np.uint8)) for i in (4, 5)])
    with pytest.raises(InputError, match=r"f.zip: collapse: 0 of 2 clusters occur"):
        go()
    assert json.loads(Path("quality.json").read_text())["clusters_used"] == 0


def test_mining_that_collapses_fails_and_leaves_its_masks(run: None) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["alarms"]["masks"] = {"min_images": 2, "max_missing": 0.5, "min_area": 0.0, "max_area": 0.01}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    Path("masks.json").unlink()
    with pytest.raises(InputError, match=r"masks.json: collapse: a mask covers"):
        mine.main("images.json", ".", "vit.safetensors", "masks.json")
    assert len(read_json("masks.json")["annotations"]) == N


def test_clusters_that_collapse_fail_and_are_left(run: None) -> None:
    tokens = np.eye(4)[[0, 0, 0, 1, 0, 0]] + 0.001 * np.random.default_rng(0).normal(size=(N, 4))
    write_npz("tokens.npz", ids=np.arange(N), tokens=tokens.astype(np.float32))
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["alarms"]["clusters"] = {"min_masks": 4, "max_fraction": 0.75}
    content["cluster"]["whiten"] = "none"
    Path("params.yaml").write_text(yaml.safe_dump(content))
    cluster.main("tokens.npz", "masks.json", "instances.json")  # of four to learn from three: at the limit
    content["alarms"]["clusters"]["max_fraction"] = 0.7
    Path("params.yaml").write_text(yaml.safe_dump(content))
    Path("instances.json").unlink()
    with pytest.raises(InputError, match=r"instances.json: collapse: one cluster holds 75.0% of 4 masks"):
        cluster.main("tokens.npz", "masks.json", "instances.json")
    assert len(read_json("instances.json")["annotations"]) == N


def test_uncertain_masks_of_train_images_are_left_out(run: None, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, _ = token_blobs((30, 30, 30))
    write_npz("tokens.npz", ids=np.arange(90), tokens=tokens)
    masks = [factories.instance(np.ones((SIDE, SIDE), bool), i % N, id=i) for i in range(90)]  # of images 4 and 5: held out
    write_json("masks.json", read_json("images.json") | {"annotations": [x.to_coco() for x in masks], "categories": []})
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["cluster"] |= {"k": 3, "algorithm": "overcluster", "overclusters": 6, "uncertain": 0.4}
    content["alarms"]["clusters"] = {"min_masks": 50, "max_fraction": 0.9}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    cluster.main("tokens.npz", "masks.json", "instances.json")
    written = read_json("instances.json")["annotations"]
    train = [a for a in written if a["image_id"] < 4]
    assert sum(a["image_id"] >= 4 for a in written) == 30  # all of them
    assert 36 <= len(train) < 50  # of 60 at least three fifths
    assert {a["category_id"] for a in train} == {0, 1, 2}
    assert f"uncertain, left out: {60 - len(train)} of 60" in capsys.readouterr().out


def test_choice_of_k_as_a_stage(run: None) -> None:
    tokens, _ = token_blobs((30, 30, 30))
    write_npz("tokens.npz", ids=np.arange(90), tokens=tokens)
    masks = [factories.instance(np.ones((SIDE, SIDE), bool), i % N, id=i) for i in range(90)]
    write_json("masks.json", {"annotations": [x.to_coco() for x in masks]})
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["choose"]["ks"] = [2, 3, 4]
    Path("params.yaml").write_text(yaml.safe_dump(content))
    choose_k.main("images.json", "tokens.npz", "masks.json", "k.json")
    chosen = read_json("k.json")
    assert (chosen["best"], chosen["objects"], [row["k"] for row in chosen["tried"]]) == (
        3,
        60,
        [2, 3, 4],
    )  # not of held-out ones
    assert "K 3 fits best" in factories.section_html("choice", label_free.choice(chosen, 8))
    assert "above chance: there may" not in factories.section_html("choice", label_free.choice(chosen, 8))
    faint = {**chosen, "tried": [{**row, "score": 0.05} for row in chosen["tried"]]}
    assert "above chance: there may" in factories.section_html("choice", label_free.choice(faint, 8))
    content["choose"]["ks"] = []
    Path("params.yaml").write_text(yaml.safe_dump(content))
    choose_k.main("images.json", "tokens.npz", "masks.json", "k.json")
    assert "choose.ks" in read_json("k.json")["needs"]
    assert "Not tried" in factories.section_html("choice", label_free.choice(read_json("k.json"), 8))
