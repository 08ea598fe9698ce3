"""ViTs in the layouts of published checkpoints, and by timm's names from files in the hub's layout; all written here."""

import argparse
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file
from test_facets import family
from timm.models import eva, vision_transformer
from torch import Tensor

from stages import fetch
from unseg.core.console import InputError
from unseg.models import facets, timm_weights, vit

ROOT = Path(__file__).parents[2]
State = dict[str, Tensor]
NAMES = (
    "vit_small_patch16_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_224.augreg_in21k",  # its images are normalised by 0.5
)


def backbone(weights: Path | str, **shape: int) -> vit.Backbone:
    return vit.Backbone(str(weights), **{key: shape.get(key) for key in ("patch", "width", "depth", "heads")})


# ---- published checkpoints

WIDTH, HEADS = 64, 1


def plain() -> State:
    """A ViT in DINO's layout."""
    torch.manual_seed(0)
    return vit.build(vit.Shape(8, WIDTH, 2, HEADS), 32).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: x for key, x in state.items()}


def other(state: State) -> State:
    return {key: x + 100 for key, x in state.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(2), "head.last_layer.weight_g": torch.zeros(2)}
OPTIONS = argparse.Namespace(arch="vit_small", epochs=300)
DECODER = {
    f"decoder_{x}": torch.zeros(2) for x in ("pos_embed", "embed.weight", "blocks.0.norm1.weight", "norm.bias", "pred.bias")
}
LAYOUTS: dict[str, Any] = {
    "timm": lambda s: s,
    "dino, whole training": lambda s: {
        "student": prefixed("module.backbone.", other(s)) | prefixed("module.", HEAD),
        "teacher": prefixed("backbone.", s) | HEAD,
        "optimizer": {"state": {}},
        "args": OPTIONS,
        "epoch": 3,
    },
    "ibot": lambda s: {"state_dict": s | {"masked_embed": torch.zeros(1, WIDTH)}},
    "ibot, whole training": lambda s: {
        "teacher": prefixed("backbone.", s | {"masked_embed": torch.zeros(1, WIDTH)}) | HEAD,
        "student": prefixed("module.backbone.", other(s)),
        "ibot_loss": {"center": torch.zeros(1)},
    },
    "msn": lambda s: {
        "encoder": prefixed("module.", other(s)),
        "target_encoder": prefixed("module.", s | {"fc.fc1.weight": torch.zeros(2)}),
        "prototypes": torch.zeros(2),
    },
    "leopart": lambda s: {"state_dict": prefixed("model.", s | {"projection_head.0.weight": torch.zeros(2)}), "epoch": 49},
    # by their READMEs: one word before each name, and two
    "leopart, as published": lambda s: prefixed("model.", s | {"head.last_layer.weight": torch.zeros(2)}),
    "timet, as published": lambda s: (
        prefixed("feature_extractor.model.", s) | {"prototypes": torch.zeros(2), "mlp_head.0.weight": torch.zeros(2)}
    ),
    "lightning, with a teacher": lambda s: {
        "state_dict": prefixed("model.", other(s)) | prefixed("teacher.", s | HEAD) | {"prototypes.weight": torch.zeros(2)}
    },
    "croc and cribo": lambda s: {
        "teacher": prefixed("module.backbone.", s) | prefixed("module.", HEAD | {"head_centroid.mlp.0.weight": torch.zeros(2)}),
        "student": prefixed("module.backbone.", other(s)),
        "args": OPTIONS,
    },
    "mae": lambda s: {"model": s},
    "mae, with its decoder": lambda s: {"model": s | DECODER | {"mask_token": torch.zeros(1, 1, 2)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path: Path, layout: str) -> None:
    state = plain()
    torch.save(LAYOUTS[layout](state), tmp_path / "a.pth")
    ours = vit.load(backbone(tmp_path / "a.pth"))
    got = ours.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[key], state[key]) for key in state)
    shape = {"patch_size": 8, "img_size": 32, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 0}
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, dynamic_img_size=True, **shape).eval()
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        assert (vit.tokens(ours, images) - theirs.forward_features(images)).abs().max() < 1e-5


@pytest.mark.parametrize(("arch", "registers"), [("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)])
@torch.no_grad()
def test_dinov2_as_its_authors_and_neco_write_it(tmp_path: Path, arch: str, registers: int) -> None:
    theirs = family(arch)
    state = theirs.state_dict() | {"mask_token": torch.zeros(1, 48)}
    if registers:  # the CLS token has a position, which timm adds to it
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.randn(1, 1, 48), state["pos_embed"]], 1)
    torch.save(state, tmp_path / "neco.ckpt")
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(state), theirs))
    images = torch.randn(2, 3, 42, 70)
    ours = vit.load(backbone(tmp_path / "neco.ckpt", heads=3))
    assert ours.num_prefix_tokens == 1 + registers
    assert (vit.tokens(ours, images) - theirs.forward_features(images)).abs().max() < 1e-5


def dinov3_of_its_authors(theirs: vit.ViT) -> State:
    """The names of DINOv3's authors, as timm's `eva.checkpoint_filter_fn` knows them."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    if hasattr(theirs.blocks[0].mlp, "fc1_g"):
        names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    state: State = {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    for key, x in theirs.state_dict().items():
        for ours, name in names.items():
            key = key.replace(ours, name)
        if key.endswith(("q_bias", "v_bias")):  # of the fused bias, whose part of the keys is 0
            at = 0 if key.endswith("q_bias") else 2
            fused = state.setdefault(f"{key[:-6]}qkv.bias", torch.zeros(3 * len(x)))
            fused[at * len(x) : (at + 1) * len(x)] = x
            state[f"{key[:-6]}qkv.bias_mask"] = torch.ones(3 * len(x))
        else:
            state[key] = x
    return state


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
@pytest.mark.parametrize("arch", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
@torch.no_grad()
def test_dinov3_as_its_authors_write_it(tmp_path: Path, arch: str, prefix: str) -> None:
    theirs = family(arch)
    state = dinov3_of_its_authors(theirs)
    torch.save(prefixed(prefix, state), tmp_path / "dinov3.pth")
    converted = eva.checkpoint_filter_fn(dict(state), theirs)
    theirs.load_state_dict(converted)
    images = torch.randn(2, 3, 48, 80)
    ours = vit.load(backbone(tmp_path / "dinov3.pth", heads=3))
    assert (ours.num_prefix_tokens, vit.patch_size(ours), vit.describe(ours).arch) == (5, 16, arch)
    assert (vit.tokens(ours, images) - theirs.forward_features(images)).abs().max() < 1e-5
    for a, b in zip(facets.read(ours, images), facets.read(theirs, images), strict=True):
        assert (a - b).abs().max() < 1e-5
    state["blocks.0.attn.more"] = torch.zeros(1)
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(InputError, match=rf"more\.pth: blocks\.0\.attn\.more has shape \[1\], {arch} needs None"):
        vit.load(backbone(tmp_path / "more.pth", heads=3))


class Options:
    """What a whole training keeps beside its weights, e.g. omegaconf's DictConfig."""


@pytest.mark.parametrize("beside", [Options(), partial(torch.zeros, 2), Path("runs")])
def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path, beside: Any) -> None:
    torch.save({"teacher": plain(), "args": beside}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth cannot be read as weights alone \(.*\); save its state_dict") as error:
        vit.load(backbone(tmp_path / "a.pth"))
    assert "\n" not in str(error.value)


def test_a_namespace_cannot_run_code(tmp_path: Path) -> None:
    class Nasty(argparse.Namespace):
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"teacher": plain(), "args": argparse.Namespace(inner=Nasty())}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot be read as weights alone"):
        vit.load(backbone(tmp_path / "a.pth"))
    assert not (tmp_path / "was_run").exists()


def test_the_hubs_own_layout_is_answered_by_the_documentation(tmp_path: Path) -> None:
    state = {"embeddings.patch_embeddings.weight": torch.zeros(48, 3, 16, 16), "layer.0.norm1.weight": torch.zeros(48)}
    save_file(state, tmp_path / "model.safetensors")  # Hugging Face transformers, not timm
    with pytest.raises(InputError, match=r"not a ViT in timm's or DINO's layout; see docs/weights\.md"):
        vit.load(backbone(tmp_path / "model.safetensors"))


def test_a_file_in_timms_layout_without_metadata(tmp_path: Path) -> None:
    state = family("vit_small_patch14_reg4_dinov2").state_dict()
    save_file({key: x.half() for key, x in state.items()}, tmp_path / "a.safetensors")
    ours = vit.load(backbone(tmp_path / "a.safetensors", heads=3))
    assert ours.num_prefix_tokens == 5
    assert ours.cls_token.dtype == torch.float32
    assert vit.normalisation(ours) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(plain() | {"blocks.0.attn.relative_position": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: blocks\.0\.attn\.relative_position has shape \[3\], a ViT in DINO's layout"):
        vit.load(backbone(tmp_path / "a.pth"))


# ---- timm's names


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """timm makes networks of 2 blocks and 48 channels; files of the real size would take seconds each."""
    create = partial(timm.create_model, depth=2, embed_dim=48, num_heads=3)
    monkeypatch.setattr(timm_weights.timm, "create_model", lambda *args, **kwargs: create(*args, **kwargs))
    return create


def write(folder: Path, name: str, create: Any) -> Any:
    """folder/NAME/model.safetensors, as on the hub, and the network in it."""
    torch.manual_seed(0)
    model = create(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    (folder / name).mkdir(parents=True)
    save_file(model.state_dict(), folder / name / "model.safetensors")
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_vit_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Any, name: str) -> None:
    monkeypatch.setenv("UNSEG_WEIGHTS", str(tmp_path / "here"))
    theirs = write(tmp_path / "here", name, small)
    out = tmp_path / "models/timm" / f"{name}.safetensors"
    fetch.main(f"timm/{name}", str(out))
    ours = vit.load(backbone(out))
    images = torch.randn(2, 3, 2 * vit.patch_size(ours), 3 * vit.patch_size(ours))
    assert (vit.tokens(ours, images) - theirs.forward_features(images)).abs().max() < 1e-5
    for a, b in zip(facets.read(ours, images, "values"), facets.read(theirs, images, "values"), strict=True):
        assert (a - b).abs().max() < 1e-5
    assert vit.normalisation(ours) == (theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])
    with safe_open(out, "pt") as file:
        about = json.loads(file.metadata()["unseg"])
    assert about["name"] == name
    assert about["source"] == f"https://huggingface.co/timm/{name}"
    assert about["license"]
    assert len(about["sha256"]) == 64
    patch, prefix = 14 if "14" in name else 16, 5 if "reg4" in name or "dinov3" in name else 1
    assert {"patch": patch, "width": 48, "depth": 2, "heads": 3, "prefix_tokens": prefix}.items() <= about["backbone"].items()
    first = out.read_bytes()
    fetch.main(f"timm/{name}", str(out))
    assert out.read_bytes() == first
    with pytest.raises(InputError, match="the ViT in it has width 48, wanted is width 384"):
        vit.load(backbone(out, width=384))


def test_the_checkpoint_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    monkeypatch.setenv("UNSEG_WEIGHTS", str(tmp_path))
    write(tmp_path, NAMES[0], small)
    (tmp_path / NAMES[0]).rename(tmp_path / NAMES[2])
    with pytest.raises(InputError, match=rf"model\.safetensors is not the checkpoint of timm/{NAMES[2]} \(") as raised:
        fetch.main(f"timm/{NAMES[2]}", str(tmp_path / "out.safetensors"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["timm/vit_small_patch16_224", "timm/vit_small_patch16_224.nobody", "timm/no_such.model"])
def test_a_name_without_weights(name: str) -> None:
    with pytest.raises(InputError, match=rf"fetch has {name}; timm .* has no such weights; write timm/ARCHITECTURE\.TAG"):
        fetch.main(name, "out.safetensors")


def test_the_hubs_cache_without_a_network(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    write(tmp_path, name, timm.create_model)
    folder = tmp_path / f"hub/models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    (tmp_path / name).rename(folder / "snapshots" / ("0" * 40))
    command = (sys.executable, "-m", "stages.fetch", "--output", str(tmp_path / "out.safetensors"), "--name")
    environ = {key: x for key, x in os.environ.items() if key != "UNSEG_WEIGHTS"} | {"HF_HUB_OFFLINE": "1"}
    environ["HF_HUB_CACHE"] = str(tmp_path / "hub")
    done = subprocess.run([*command, f"timm/{name}"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert vit.load(backbone(tmp_path / "out.safetensors")).embed_dim == 192
    done = subprocess.run([*command, f"timm/{NAMES[0]}"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert f"timm/{NAMES[0]} cannot be fetched from the hub" in said
    assert f"put it into a folder as {NAMES[0]}/model.safetensors, and set UNSEG_WEIGHTS to that folder" in said


def test_what_can_be_had_without_fetching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "timm/vit_tiny_patch16_224.augreg_in21k"
    cached: list[str] = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: cached[0] if cached else None)
    monkeypatch.delenv("UNSEG_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://localhost:9/{filename}")  # nobody answers
    assert not timm_weights.is_available(name)
    cached.append("model.safetensors")
    assert timm_weights.is_available(name)
    cached.clear()
    (tmp_path / "vit_tiny_patch16_224.augreg_in21k").mkdir()
    (tmp_path / "vit_tiny_patch16_224.augreg_in21k/model.safetensors").touch()
    monkeypatch.setenv("UNSEG_WEIGHTS", str(tmp_path))
    assert timm_weights.is_available(name)


def test_a_mirror_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    name, asked = "timm/vit_tiny_patch16_224.augreg_in21k", []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) == 1 else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("UNSEG_WEIGHTS", raising=False)
    with HTTPServer(("localhost", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = "{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://localhost:{server.server_port}/{path}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert timm_weights.is_available(name)
        assert not timm_weights.is_available(name)  # a model whose licence must be accepted first
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not timm_weights.is_available(name)
        server.shutdown()
    assert asked == [f"/{name}/resolve/main/model.safetensors"] * 2
