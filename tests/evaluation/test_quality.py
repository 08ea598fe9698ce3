"""Quality without labels, its alarms, and the choice of K: by hand, on blobs, and the stages on a small run."""

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
from unseg.core.rle import coco_annotation, decode, encode

from stages import choose_k, cluster, evaluate_quality, mine
from unseg.clustering import choice
from unseg.clustering.algorithms import cluster as clusters_of
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import write_label_maps
from unseg.core.storage import read_json, write_json, write_npz
from unseg.evaluation.label_free import quality, stability
from unseg.models import vit
from unseg.report import label_free

# ---- pure functions


def test_shares_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[:, :2] = True  # of the rim of 14 pixels: 4 left, and 2 of the top and bottom rows
    assert quality.border(mask) == pytest.approx(6 / 14)
    assert quality.border(np.ones((1, 1), bool)) == 1
    assert quality.evenness(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert quality.evenness(np.array([5, 5, 0, 0])) == pytest.approx(0.5)
    assert quality.evenness(np.array([9, 0])) == 0
    assert quality.evenness(np.array([9])) == 1
    other = np.zeros((4, 5), bool)
    other[:, 1:3] = True
    assert quality.overlap(mask, other) == pytest.approx(4 / 12)
    assert quality.overlap(~mask & mask, ~mask & mask) == 1
    assert quality.solid(np.array([[0, 1, 1, 255]], np.uint8)).tolist() == [[False, True, True, False]]
    image = ImageRecord(1, "a.png", 4, 5, "train")
    assert quality.of_masks([image, image], [coco_annotation(1, 1, 0, encode(mask))]) == pytest.approx(
        {"mask_missing": 0.5, "mask_area": 8 / 20, "mask_border": 6 / 14}
    )
    assert math.isnan(quality.of_masks([image], [])["mask_area"])


def test_agreement_of_two_maps_by_hand() -> None:
    one, two = np.array([[1, 1, 2, 0, 255]], np.uint8), np.array([[1, 2, 2, 2, 2]], np.uint8)
    assert quality.agreement(one, two) == (3 / 5, 3, 2)


def test_clusters_that_are_there_are_found_again_and_others_not() -> None:
    tokens, names = token_blobs((40, 40, 40))
    p, q = clustering(), quality.Quality(images=0, seeds=3, objects=100)
    real = quality.of_clusters(tokens, names, p, q, 0)
    assert real["cluster_stability"] == pytest.approx(1)
    assert real["cluster_silhouette"] > 0.8
    assert (real["cluster_balance"], real["clusters_empty"]) == (pytest.approx(1), 0)
    chance = quality.of_clusters(tokens, np.random.default_rng(0).permutation(names), p, q, 0)
    assert chance["cluster_silhouette"] < 0.1
    assert chance["cluster_stability"] < 0.6  # K-means agrees with itself, not with these
    noise = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float32)
    assert quality.seed_stability(noise, names, clustering(k=8, starts=1), (1, 2, 3)) < 0.6
    assert math.isnan(quality.silhouette(tokens, np.zeros(120, int), clustering(), 100, 0))
    assert math.isnan(quality.seed_stability(tokens, names, p, ()))


def test_a_view_is_compared_where_it_shows_the_same() -> None:
    image, mask = ImageRecord(1, "a.png", 8, 8, "train"), np.zeros((8, 8), bool)
    mask[2:6, 1:4] = True  # rows and columns 1 to 6 are the middle
    flipped, cropped = (stability.View(image, mask, f) for f in (True, False))
    assert flipped.size == (8, 8)
    assert cropped.size == (6, 6)
    one, two = flipped.pair(mask[:, ::-1]) or ()
    assert (one == two).all()
    one, two = cropped.pair(mask[1:7, 1:7]) or ()
    assert (one == two).all()
    corner = np.zeros((8, 8), bool)
    corner[:2, :2] = True
    assert stability.View(image, corner, False).pair(np.ones((6, 6), bool)) is None
    assert stability.window((1, 1)) == (slice(0, 1), slice(0, 1))


def test_stability_is_what_exceeds_chance() -> None:
    left, right, whole = np.zeros((4, 8), bool), np.zeros((8, 4), bool), np.ones((5, 5), bool)
    left[:, :4], right[:, 2:] = True, True
    assert stability.above_chance([(left, left), (right, right)]) == 1
    assert stability.above_chance([(left, right.T[:, ::1]), (right, right)]) < 1
    assert stability.above_chance([(whole, whole)] * 3) == 0  # stable, and of no use
    # IoUs: left with whole 1/2 and with itself 1, whole with left 1/2: own (1/2 + 1/2) / 2, other (1 + 1) / 2
    assert stability.above_chance([(left, whole), (whole, left)]) == 0
    # own 1/2 and 1/2; other: left with left's other half 0, whole with whole 1
    half = ~left
    assert stability.above_chance([(left, whole), (whole, half)]) == pytest.approx((0.5 - 0.5) / 0.5)
    assert stability.above_chance([(left, left), (half, left)]) == pytest.approx((0.5 - 0.5) / 0.5)
    assert stability.above_chance([(left, left), (half, half), (half, half)]) == pytest.approx((1 - 1 / 3) / (1 - 1 / 3))
    assert stability.above_chance([(left, left), (half, whole)]) == pytest.approx((0.75 - 0.25) / 0.75)
    assert math.isnan(stability.above_chance([(left, left)]))


def test_a_view_shows_what_it_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    image = ImageRecord(1, "a.png", 8, 6, "train")
    views = [stability.View(image, np.ones((8, 6), bool), f) for f in (True, False)]
    assert (np.asarray(views[0].read(tmp_path)) == pixels[:, ::-1]).all()
    assert (np.asarray(views[1].read(tmp_path)) == pixels[stability.window((8, 6))]).all()
    assert np.asarray(views[1].read(tmp_path)).shape[:2] == views[1].size == (6, 4)


# ---- choice of K


def choosing_of(*ks: int, **changed: int) -> choice.Choosing:
    return choice.Choosing(**({"ks": list(ks), "repeats": 5, "objects": 300, "starts": 3} | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("true", [3, 5])
def test_the_number_of_blobs_is_recommended(true: int) -> None:
    tokens, _ = token_blobs((30,) * true)
    tried = choice.sweep(tokens, clustering(), choosing_of(2, 3, 4, 5, 6, 200), 0)
    assert tried.ks == [2, 3, 4, 5, 6]  # halves of 75 cannot make 200
    advice = choice.recommend(tried)
    assert advice.best == true
    assert advice.as_good == [true]
    assert advice.wins[tried.ks.index(true)] == 1
    assert tried.stability[tried.ks.index(true)].min() == pytest.approx(1)


def test_where_there_are_no_clusters_many_k_are_as_good() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    advice = choice.recommend(choice.sweep(noise, clustering(), choosing_of(2, 3, 4, 5), 0))
    assert len(advice.as_good) > 1


def test_the_reference_has_the_mean_and_the_covariance_and_no_clusters() -> None:
    tokens, _ = token_blobs((400, 400, 400))
    noise = choice.reference(tokens, np.random.default_rng(0))
    assert noise.shape == tokens.shape
    assert np.allclose(noise.mean(0), tokens.mean(0), atol=0.06)
    assert np.allclose(np.cov(noise.T), np.cov(tokens.T), atol=0.03)
    labels = clustering_of(noise)
    assert (
        quality.silhouette(noise, labels, clustering(whiten="none"), 500, 0)
        < 0.6
        < quality.silhouette(tokens, clustering_of(tokens), clustering(whiten="none"), 500, 0)
    )


def clustering_of(tokens: np.ndarray) -> np.ndarray:
    return clusters_of(tokens, tokens, clustering(whiten="none"), 0)


def test_few_clusters_are_not_preferred_for_being_few() -> None:
    """Six blobs of which three each are near each other: two are stable and far apart, and noise of that shape is too."""
    rng = np.random.default_rng(0)
    centres = np.eye(12)[:6] * 0.5 + np.repeat(np.eye(12)[[10, 11]], 3, 0)
    tokens = (np.repeat(centres, 50, 0) + rng.normal(0, 0.04, (300, 12))).astype(np.float32)
    p = clustering(whiten="none")
    tried = choice.sweep(tokens, p, choosing_of(2, 3, 4, 6, 8), 0)
    assert tried.stability[0].min() == pytest.approx(1)
    assert choice.recommend(tried).best == 6


def test_advice_by_hand() -> None:
    silhouette = np.ones((3, 4))
    stability_ = np.array([[0.25] * 4, [0.81, 0.81, 0.81, 0.49], [0.81, 0.64, 0.64, 0.81]])
    tried = choice.Trial([4, 6, 8], stability_ + 0.1, silhouette, 0 * silhouette + 0.1, 0 * silhouette)
    assert np.allclose(tried.score[1], [0.9, 0.9, 0.9, 0.7])
    advice = choice.recommend(tried)  # means 0.5, 0.85, 0.85: the smaller of equals; 8 cannot be told from it
    assert (advice.best, advice.as_good) == (6, [6, 8])
    assert advice.wins == pytest.approx([0, 2.5 / 4, 1.5 / 4])
    once = choice.Trial([4, 6], np.array([[0.2], [0.9]]), np.ones((2, 1)), *np.zeros((2, 2, 1)))
    assert choice.recommend(once).as_good == [4, 6]  # of one repeat nothing is known
    worse = choice.Trial([2], np.array([[0.4]]), np.array([[0.9]]), np.array([[0.5]]), np.array([[0.1]]))
    assert worse.score.tolist() == [[0]]  # less stable than noise


@pytest.mark.parametrize("ks", [[3, 2], [2, 2], [1, 2]])
def test_what_k_may_be(ks: list[int]) -> None:
    with pytest.raises(ValueError, match="it must be numbers from 2 on, rising"):
        choosing_of(*ks)


# ---- the stages

N, SIDE = 6, 32
PARAMS: dict[str, Any] = {
    "seed": 0,
    "backbone": {"weights": "vit.safetensors", "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "mine": {
        "method": "maskdistill",
        "mass": 0.75,
        "patches": 400,
        "objects": 1,
        "stop": 0.3,
        "resize": 32,
        "keep": 0.4,
        "rank": "logits",
        "center": True,
        "component": True,
        "precision": "fp32",
    },
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
    save_file(vit.build(backbone, 32).state_dict(), "vit.safetensors")
    mine.main("images.json", ".", "vit.safetensors", "masks.json")
    mined = read_json("masks.json")
    write_json("instances.json", mined | {"annotations": [{**a, "category_id": a["id"] % 2} for a in mined["annotations"]]})
    write_npz("tokens.npz", ids=np.arange(N), tokens=rng.normal(size=(N, 4)).astype(np.float32))
    maps = [
        (f"{a['image_id']}.png", (decode(a["segmentation"]) * (1 + a["id"] % 2)).astype(np.uint8)) for a in mined["annotations"]
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
    assert (numbers["images"], numbers["judged"], numbers["mined_again"], numbers["seeds"]) == (6, 2, 4, [0])
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
    state = vit.build(vit.Backbone(**PARAMS["backbone"]), 32).state_dict()
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


def test_choice_of_k_as_a_stage(run: None) -> None:
    tokens, _ = token_blobs((30, 30, 30))
    write_npz("tokens.npz", ids=np.arange(90), tokens=tokens)
    masks = [{"id": i, "image_id": i % N} for i in range(90)]
    write_json("masks.json", {"annotations": masks})
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
