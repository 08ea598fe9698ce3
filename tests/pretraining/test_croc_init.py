"""CrOC that continues from a file of any ViT (`croc.init`), against timm's own network; the files are written here."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image as Pillow
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages import pretrain
from unseg.core.console import InputError
from unseg.core.storage import write_json
from unseg.engine import training
from unseg.models import facets, vit, vit_files
from unseg.pretraining import croc_training, views

SMALL = {"num_classes": 0, "depth": 3, "embed_dim": 48, "num_heads": 3, "dynamic_img_size": True}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3,) * 2
FAMILIES: dict[str, tuple[int, int, Any]] = {  # timm's architecture: patch, prefix tokens, normalisation
    "vit_small_patch16_224": (16, 1, HALF),
    "vit_small_patch14_reg4_dinov2": (14, 5, IMAGENET),  # registers and LayerScale
    "vit_small_patch16_dinov3": (16, 5, IMAGENET),  # rotary embeddings, no position embeddings
    "eva02_small_patch14_224": (14, 1, None),  # separate q, k and v
    "vit_small_patch16_rope_mixed_224": (16, 1, IMAGENET),  # a rotation for each block
}


def settings(size: int, features: str = "keys", **changed: Any) -> croc_training.Croc:
    p = factories.group("croc", croc_training.Croc, epochs=1, batch=2, outputs=16, outputs_centroid=8, hidden=16, bottleneck=8)
    clusters = replace(p.clustering, features=features, tokens=5)
    return replace(p, clustering=clusters, views=replace(p.views, size=size), precision="fp32", **changed)


def written(path: Path, arch: str, positions: int = 3) -> vit.ViT:
    """A small network of timm, whose position embeddings are for another grid than the views', in a file as `fetch` makes it."""
    torch.manual_seed(0)
    size = positions * FAMILIES[arch][0]
    model = vit.checked(timm.create_model(arch, pretrained=False, img_size=size, **SMALL), arch)
    for name, x in model.named_parameters():
        if "pos_embed" in name or "token" in name:
            nn.init.normal_(x, 0, 0.3)
        elif name.endswith(("bias", "gamma", "gamma_1", "gamma_2")):
            nn.init.normal_(x, 0.2, 0.3)
    about = {"name": arch, "license": "apache-2.0", "source": "https://example.org"}
    training.write_weights(path, model, {"kind": "vit", "backbone": asdict(vit.describe(model)), **about})
    return model.eval()


def start(path: Path) -> vit.ViT:
    """What CrOC starts from if params.yaml has null for the shape."""
    loaded = croc_training.starting_point(vit.Backbone(str(path), None, None, None, None))
    assert not isinstance(loaded, vit.Shape)
    return loaded


def batch_of(size: int, images: int = 3) -> views.Views:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 2, 3, size, size), generator=g, dtype=torch.uint8)
    return views.Views(
        pixels, torch.tensor([8.0, 4.0, 20.0, 24.0]).expand(images, 2, 4), torch.zeros(images, 2, dtype=torch.bool)
    )


@pytest.mark.parametrize("arch", FAMILIES)
def test_tokens_and_features_of_any_vit(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, prefix, norm = FAMILIES[arch]
    theirs, batch, clustered, tokens = written(tmp_path / "a.safetensors", arch), batch_of(4 * patch), [], []
    mean, std = norm or (timm.get_pretrained_cfg(arch).mean, timm.get_pretrained_cfg(arch).std)
    pixels = (batch.pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    pixels = pixels.transpose(0, 1).flatten(0, 1)  # [6, 3, S, S], view by view
    assert theirs.num_prefix_tokens == prefix
    with torch.no_grad():
        want = theirs.forward_features(pixels)
        want = torch.cat([want[:, :1], want[:, prefix:]], 1).unflatten(0, (2, 3))  # [2, 3, 17, 48], no registers
    pooled: list[Tensor] = []
    split, centroids = croc_training.croc.join_locate_split, croc_training.croc.centroids
    monkeypatch.setattr(croc_training.croc, "centroids", lambda x, *a: pooled.append(x) or centroids(x, *a))
    monkeypatch.setattr(
        croc_training.croc, "join_locate_split", lambda x, *a, noise: clustered.append(x) or split(x, *a, noise=noise)
    )
    for kind in ("queries", "keys", "values", "tokens"):
        net = croc_training.StudentTeacher(settings(4 * patch, kind, drop_path=0.0), start(tmp_path / "a.safetensors")).train()
        net.student.register_forward_hook(lambda m, i, o: tokens.append(o))
        out = net(batch, 0.04, 0.04)
        assert (tokens[-1] - want).abs().max() < 1e-5
        assert all((x - want[:, :, 1:]).abs().max() < 1e-5 for x in pooled[-2:])  # teacher's and student's
        got = clustered[-1]
        assert got.shape == ((2, 3, 1, 17, 48) if kind == "tokens" else (2, 3, 3, 17, 16))
        if kind == "tokens":
            assert (got[:, :, 0] - want).abs().max() < 1e-5
        else:
            patches = facets.read(theirs, pixels, kind).features.unflatten(0, (2, 3))  # before any rotation
            assert (got[:, :, :, 1:] - patches).abs().max() < 1e-5
        out["loss"].backward()
        assert all(x.grad is None for x in net.teacher.parameters())
        moved = {name for name, x in net.student.vit.named_parameters() if x.grad is not None and x.grad.any()}
        assert moved >= {name for name, _ in net.student.vit.named_parameters() if "pos_embed" in name or "reg_token" in name}


@pytest.mark.parametrize("arch", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_stochastic_depth_is_the_students(tmp_path: Path, arch: str) -> None:
    written(tmp_path / "a.safetensors", arch)
    size = 2 * FAMILIES[arch][0]
    net = croc_training.StudentTeacher(settings(size, drop_path=0.4), start(tmp_path / "a.safetensors")).train()
    rates = [(block.drop_path1.drop_prob, block.drop_path2.drop_prob) for block in net.student.vit.blocks]
    assert rates == [pytest.approx((rate, rate)) for rate in (0.0, 0.2, 0.4)]
    assert not any(isinstance(m, timm.layers.DropPath) for m in net.teacher.modules())
    pixels = torch.randn(8, 3, size, size)
    assert torch.equal(net.teacher(pixels), net.teacher(pixels))
    assert not torch.allclose(net.student(pixels), net.student(pixels))
    assert torch.allclose(net.eval().student(pixels), net.teacher(pixels), atol=1e-5)


def dinov2_of_its_authors(path: Path) -> None:
    model = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, img_size=56, **SMALL)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 48)}
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.randn(1, 1, 48), state["pos_embed"]], 1)
    torch.save(state, path)


def whole_training_of_dino(path: Path) -> None:
    state = {f"backbone.{key}": x for key, x in vit.build(vit.Shape(8, 64, 2, 1), 32).state_dict().items()}
    torch.save({"teacher": state | {"head.mlp.0.weight": torch.zeros(2)}, "student": {}, "epoch": 3}, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six photographs, data/images.json, and the demo's params.yaml at toy size with null for backbone's shape."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"UNSEG_SCRATCH": "scratch", "UNSEG_WORKERS": "0", "UNSEG_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    rng = np.random.default_rng(0)
    for i in range(6):
        Pillow.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(f"{i}.png")
    records = [{"id": i + 1, "file_name": f"{i}.png", "height": 60, "width": 60, "split": "train"} for i in range(6)]
    write_json("images.json", {"images": records})
    return tmp_path


def run_stage(init: str, size: int, **shape: int | None) -> None:
    content: Any = yaml.safe_load((factories.ROOT / "params.yaml").read_text())
    content["backbone"] |= dict.fromkeys(("patch", "width", "depth", "heads")) | shape
    content["croc"] |= asdict(settings(size)) | {"init": init}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    pretrain.main("images.json", ".", "out.safetensors", "out.tsv")


@pytest.mark.parametrize("init", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "dinov2.pth", "dino.pth"])
def test_the_stage_writes_a_file_that_loads_back(folder: Path, init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, prefix, norm = FAMILIES.get(init, (8, 1, IMAGENET))
    file = init if init.endswith(".pth") else f"{init}.safetensors"
    if init == "dinov2.pth":
        dinov2_of_its_authors(folder / file)
        patch, prefix = 14, 5
    elif init == "dino.pth":
        whole_training_of_dino(folder / file)
    else:
        written(folder / file, init)
    reads: list[str] = []
    read, trained, fit = vit_files.read_state, [], croc_training.train
    monkeypatch.setattr(vit_files, "read_state", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(pretrain.croc_training, "train", lambda *a: trained.append(fit(*a)) or trained[0])
    run_stage(file, 4 * patch, heads=3 if init == "dinov2.pth" else None)
    assert reads == [file]
    (model, _), was = trained[0], start(folder / file) if init != "dinov2.pth" else None
    again = start(folder / "out.safetensors")
    assert (vit.patch_size(again), again.num_prefix_tokens, vit.normalisation(again)) == (patch, prefix, norm)
    assert again.patch_embed.img_size == model.patch_embed.img_size  # position embeddings keep the file's grid
    assert (was is None) or type(again) is type(was)
    images = torch.randn(2, 3, 5 * patch, 3 * patch)
    with torch.no_grad():
        assert (vit.tokens(again, images) - vit.tokens(model.eval(), images)).abs().max() < 1e-5
        pairs = zip(facets.read(again, images), facets.read(model, images), strict=True)
        assert all((a - b).abs().max() < 1e-5 for a, b in pairs)
    with safe_open("out.safetensors", "pt") as opened:
        about = json.loads(opened.metadata()["unseg"])
    assert about["backbone"] == asdict(vit.describe(model))
    assert about["backbone"]["arch"] == ("" if init.endswith(".pth") else init)
    origin = {"kind": "vit", "name": init, "license": "apache-2.0", "source": "https://example.org"}
    assert about.get("init") == (None if init.endswith(".pth") else origin)
    before: dict[str, Tensor] = load_file(file) if was is not None and not init.endswith(".pth") else {}
    changed = [key for key, x in load_file("out.safetensors").items() if key in before and not torch.equal(x, before[key])]
    assert bool(changed) == bool(before)  # it learned
    assert Path("out.tsv").read_text().startswith("step\tloss")


def not_a_vit(path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, path)


def other_depth(path: Path) -> None:
    written(path, "vit_small_patch16_dinov3")


def missing_tensor(path: Path) -> None:
    state = vit.build(vit.Shape(8, 64, 2, 1), 32).state_dict()
    del state["blocks.1.norm2.bias"]
    save_file(state, path)


@pytest.mark.parametrize(
    ("write", "shape", "size", "message"),
    [
        (not_a_vit, {}, 32, r"croc\.init: a\.safetensors has no patch_embed\.proj\.weight: not a ViT"),
        (lambda path: path.write_text("nothing"), {}, 32, r"croc\.init: a\.safetensors is not a safetensors file"),
        (lambda path: None, {}, 32, r"croc\.init: a\.safetensors: no such file"),
        (missing_tensor, {}, 32, r"croc\.init: a\.safetensors: blocks\.1\.norm2\.bias has shape None"),
        (
            other_depth,
            {"depth": 2},
            32,
            r"croc\.init: a\.safetensors: .* has depth 3, wanted is depth 2; .* write null for depth",
        ),
        (other_depth, {}, 40, r"croc\.views\.size is 40; it must be a multiple of the ViT's patch, 16"),
        (other_depth, {"patch": 0}, 32, r"params\.yaml: backbone\.patch is 0; it must be at least 1"),
    ],
)
def test_a_file_that_does_not_fit_ends_in_one_line(
    folder: Path, write: Any, shape: dict[str, int], size: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "a.safetensors")
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("it trains"))
    with pytest.raises(InputError, match=message) as raised:
        run_stage("a.safetensors", size, **shape)
    assert "\n" not in str(raised.value)
    assert not os.path.exists("out.safetensors")


def test_random_weights_need_a_shape(folder: Path) -> None:
    with pytest.raises(InputError, match="patch of backbone or embedder is null; a ViT that starts from random weights needs"):
        run_stage("models/fresh", 32)
