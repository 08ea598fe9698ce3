"""Random weights in the layouts of official files: fetched, read, and loaded into the models (unseg/models/)."""

import hashlib
import http.server
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages import fetch
from unseg.core.console import InputError
from unseg.models import official, resnet, vit
from unseg.models.weights import resnet_state

State = dict[str, Tensor]
VITS16 = vit.Backbone("", patch=16, width=384, depth=12, heads=6)


def dino_vit(patch: int, grid: int, width: int = 384, depth: int = 12) -> State:
    """The keys and shapes of DINO's ViT checkpoints, written out; random values of a trained network's scale."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for i in range(depth):
        for name, shape in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    state = {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    return {name: 1 + x if "norm" in name and name.endswith("weight") else x for name, x in state.items()}


def moco(state: State) -> dict[str, Any]:
    """MoCo-v2's checkpoint of a ResNet without `fc`."""
    fc = {f"fc.{i}.{x}": torch.zeros(2) for i in (0, 2) for x in ("weight", "bias")}
    return {"epoch": 800, "arch": "resnet50", "state_dict": {f"module.encoder_q.{k}": v for k, v in (state | fc).items()}}


def trained(model: torch.nn.Module) -> State:
    """Random weights and running statistics, as of a trained network, without `fc`."""
    torch.manual_seed(1)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    for key, x in state.items():
        if key.endswith(("bias", "running_mean")):
            x.normal_(0, 0.1)
        elif x.ndim == 1:
            x.uniform_(0.5, 1.5)
        elif x.ndim == 0:
            x.fill_(7)
    return state


@pytest.fixture(scope="module")
def resnet50() -> timm.models.ResNet:
    model = timm.create_model("resnet50", num_classes=0)
    trained(model)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty UNSEG_WEIGHTS, an empty cache of torch.hub, and recipes without checksums and with local addresses."""
    monkeypatch.setenv("UNSEG_WEIGHTS", str(tmp_path / "official"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, recipe in official.RECIPES.items():
        monkeypatch.setitem(official.RECIPES, name, replace(recipe, md5="", url=f"http://127.0.0.1:9/{recipe.file}"))
    (tmp_path / "official").mkdir()
    return tmp_path


# ---- ViTs


def plain_vit(state: State, image: Tensor, heads: int) -> Tensor:
    """A second implementation of a ViT, for one image [1, 3, S, S] of the size of its position embeddings."""
    patch = state["patch_embed.proj.weight"]
    x = torch.nn.functional.conv2d(image, patch, state["patch_embed.proj.bias"], patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"], x], 1) + state["pos_embed"]  # [1, 1 + N, D]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for b in (f"blocks.{i}." for i in range(depth)):
        q, k, v = linear(norm(x, b + "norm1"), b + "attn.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # [1, H, 1 + N, 1 + N]
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), b + "attn.proj")
        hidden = linear(norm(x, b + "norm2"), b + "mlp.fc1")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), b + "mlp.fc2")
    return norm(x, "norm")


LENGTHS = [1, 100, math.isqrt(vit.SCORES // 2) + 1, math.isqrt(vit.SCORES) + 9]  # at last: one head at a time


@pytest.mark.parametrize("length", LENGTHS)
def test_explicit_attention_is_attention(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = vit.build(vit.Shape(8, 32, 1, 2), 64).blocks[0].attn
    attention.qkv.weight.data.mul_(12)  # attention as sharp as in a trained ViT
    x = 3 * torch.randn(2, length, 32)
    with torch.no_grad():
        want = timm.layers.Attention.forward(attention.double(), x.double())
        fused = attention.float()(x)
        assert torch.equal(fused, timm.layers.Attention.forward(attention, x))  # float32: timm's
        assert (fused - want).abs().max() < 1e-4

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the fused kernel")

    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            fused = timm.layers.Attention.forward(attention, x).double()
            attention.fused_attn = False
            assert torch.equal(attention(x), timm.layers.Attention.forward(attention, x))
            attention.fused_attn = True
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
        with torch.no_grad():
            explicit = attention(x).double()
        assert (explicit - want).norm() < 0.03 * want.norm()
        assert (explicit - want).norm() < 2 * (fused - want).norm()
        with pytest.raises(AssertionError, match="fused"):  # in training: timm's
            attention(x)


def test_explicit_attention_holds_few_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(len(a) * a.shape[1] * b.shape[2]) or bmm(a, b))
    attention = vit.build(vit.Shape(8, 32, 1, 2), 64).blocks[0].attn
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(60, 150, 32))
        assert len(sizes) > 2
        assert max(sizes) <= vit.SCORES
        sizes.clear()
        attention(torch.randn(2, 1100, 32))
    assert max(sizes) == 1100**2


@torch.no_grad()
def test_dino_vit_gives_the_tokens_of_timm_and_of_a_plain_vit(folder: Path) -> None:
    state = dino_vit(patch=16, grid=14)
    torch.save(state, folder / "official" / "dino_deitsmall16_pretrain.pth")
    fetch.main("dino_vits16", str(folder / "models" / "dino_vits16.safetensors"))
    timms = timm.create_model("vit_small_patch16_224.dino", pretrained=False, dynamic_img_size=True, num_classes=0).eval()
    timms.load_state_dict(state)
    ours = vit.load(replace(VITS16, weights=str(folder / "official" / "dino_deitsmall16_pretrain.pth")))
    for size in ((224, 224), (96, 160)):
        images = torch.randn(1, 3, *size)
        assert (vit.tokens(ours, images) - timms.forward_features(images)).abs().max() < 1e-5
        if size == (224, 224):
            assert (vit.tokens(ours, images) - plain_vit(state, images, 6)).abs().max() < 1e-4
    kept = load_file(folder / "models" / "dino_vits16.safetensors")
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[key], state[key]) for key in state)


def test_a_vit_of_another_patch_is_refused(folder: Path) -> None:
    torch.save(dino_vit(patch=16, grid=14), folder / "official" / "dino_deitsmall8_pretrain.pth")
    with pytest.raises(InputError, match=r"not the official dino_deitsmall8_pretrain\.pth: .* has patch 16, wanted is patch 8"):
        fetch.main("dino_vits8", str(folder / "out.safetensors"))
    assert not (folder / "out.safetensors").exists()


# ---- ResNets


def test_timm_and_torchvision_share_names_and_shapes(resnet50: timm.models.ResNet) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    want = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in resnet50.state_dict().items()} == want


@torch.no_grad()
def test_moco_checkpoint_becomes_a_resnet(folder: Path, resnet50: timm.models.ResNet) -> None:
    source = folder / "official" / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(moco(resnet50.state_dict()), source, _use_new_zipfile_serialization=False)  # as torch 1.3 wrote it
    out = folder / "models" / "moco_resnet50.safetensors"
    fetch.main("moco_resnet50", str(out))
    images = torch.randn(2, 3, 64, 96)
    want = resnet50(images)
    assert want.std() > 1e-3
    for path in (source, out):
        body = resnet.ResNetBackbone("resnet50", 64)
        resnet.initialise(body, str(path), "segmenter")
        got = body.eval()(images)[-1].mean((2, 3))
        assert (got - want).abs().max() < 1e-5
        theirs = torchvision.models.resnet50()
        theirs.fc = torch.nn.Identity()
        theirs.load_state_dict(resnet_state(path))
        assert (theirs.eval()(images) - want).abs().max() < 1e-5
    with safe_open(out, "pt") as file:
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        assert file.metadata()["unseg"] == f'{{"kind": "backbone", "sha256": "{sha256}", "source": "{url("moco_resnet50")}"}}'
    first = out.read_bytes()
    fetch.main("moco_resnet50", str(out))
    assert out.read_bytes() == first


def url(name: str) -> str:
    return official.RECIPES[name].url


SMALL = ("conv1.weight", "bn1.running_var", "layer1.0.conv2.weight", "layer4.1.downsample.0.weight")
FC = {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}


def small() -> State:
    return {name: torch.full((1,), float(i)) for i, name in enumerate(SMALL)}


def prefixed(before: str, state: State) -> State:
    return {before + key: x for key, x in state.items()}


OTHER = prefixed("", {k: x + 100 for k, x in small().items()})
LAYOUTS = {
    "plain": small(),
    "torchvision": small() | FC,
    "dino": {"teacher": prefixed("backbone.", small()) | {"head.mlp.0.weight": torch.zeros(1)}, "epoch": 3},
    "dino, in parallel": {"teacher": prefixed("module.backbone.", small()), "student": prefixed("module.backbone.", OTHER)},
    "moco-v2": {"state_dict": prefixed("module.encoder_q.", small() | FC), "epoch": 3, "arch": "resnet50"},
    "moco-v2, with its queue": {
        "state_dict": prefixed("module.encoder_k.", OTHER)
        | prefixed("module.encoder_q.", small() | {"fc.0.weight": torch.zeros(1)})
        | {"module.queue": torch.zeros(2, 3), "module.queue_ptr": torch.zeros(1)}
    },
    "moco-v3": {
        "state_dict": prefixed("module.base_encoder.", small())
        | prefixed("module.momentum_encoder.", OTHER)
        | {"module.predictor.0.weight": torch.zeros(1)}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "a.pth")
    assert resnet_state(tmp_path / "a.pth") == small()


def test_layout_of_unseg(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "a.safetensors")
    assert resnet_state(tmp_path / "a.safetensors") == small()


@pytest.mark.parametrize(
    "strange",
    [
        {"layer5.0.conv1.weight": torch.zeros(1)},
        {"conv1.0.weight": torch.zeros(1)},
        {"queue": torch.zeros(1)},  # without MoCo's encoder beside it
        {"layer1.0.conv4.weight": torch.zeros(1)},
        {"layer1.0.conv2.weight_g": torch.zeros(1)},
        {"pos_embed": torch.zeros(1)},
    ],
)
def test_every_key_is_accounted_for(tmp_path: Path, strange: State) -> None:
    torch.save(small() | strange, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth: a ResNet has no {next(iter(strange))} \(and 0 more keys\)"):
        resnet_state(tmp_path / "a.pth")


def test_a_key_beside_the_encoder_is_not_taken_for_a_layer(tmp_path: Path) -> None:
    torch.save(prefixed("module.encoder_q.", small()) | {"module.conv1.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a ResNet has no conv1\.weight"):
        resnet_state(tmp_path / "a.pth")


def test_weights_without_a_layer_of_a_resnet(tmp_path: Path) -> None:
    torch.save(FC, tmp_path / "a.pth")
    with pytest.raises(InputError, match="it has no layer of a ResNet"):
        resnet_state(tmp_path / "a.pth")


def test_an_incomplete_resnet_is_refused(folder: Path, resnet50: timm.models.ResNet) -> None:
    state = resnet50.state_dict()
    del state["layer3.5.bn2.running_var"]
    torch.save(state, folder / "official" / "dino_resnet50_pretrain.pth")
    with pytest.raises(InputError, match=r"layer3\.5\.bn2\.running_var has shape None"):
        fetch.main("dino_resnet50", str(folder / "out.safetensors"))


class Nasty:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize("name", ["moco_resnet50", "dino_vits16"])
def test_pickles_with_code_are_refused_unrun(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    torch.save({"state_dict": small(), "args": Nasty()}, folder / "official" / official.RECIPES[name].file)
    with pytest.raises(InputError, match=r"cannot be read as weights alone .*save its state_dict with torch\.save"):
        fetch.main(name, "out.safetensors")
    assert not Path("was_run").exists()


# ---- where the files come from


class Answer(http.server.BaseHTTPRequestHandler):
    """Serves 3 MiB; announces one byte more under /short, and no length under /vague."""

    content = bytes(range(256)) * (3 << 12)

    def do_HEAD(self) -> None:
        self.send_response(404 if "missing" in self.path else 200)
        if "vague" not in self.path:
            self.send_header("Content-Length", str(len(self.content) + ("short" in self.path)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


MD5 = hashlib.md5(Answer.content).hexdigest()


@pytest.mark.parametrize("path", ["a", "vague"])
def test_fetched_once_into_the_cache_of_torch_hub(folder: Path, server: str, path: str) -> None:
    recipe = official.Recipe(f"{server}/{path}/w.pth", MD5[:6], None)
    file = official.obtain(recipe)
    assert file == folder / "torch" / "hub" / "checkpoints" / "w.pth"
    assert file.read_bytes() == Answer.content
    assert [p.name for p in file.parent.iterdir()] == ["w.pth"]
    assert official.obtain(replace(recipe, url="http://127.0.0.1:9/w.pth")) == file


def test_the_given_folder_comes_first(folder: Path) -> None:
    recipe = official.Recipe("http://127.0.0.1:9/w.pth", "", None)
    for at in ("torch/hub/checkpoints", "official"):
        (folder / at).mkdir(parents=True, exist_ok=True)
        (folder / at / "w.pth").write_text(at)
        assert official.obtain(recipe).read_text() == at


@pytest.mark.parametrize(
    ("path", "md5", "message"),
    [
        ("a", "ffff", rf"the download of .*/a/w\.pth has the MD5 {MD5}, the official w\.pth has ffff\.\.\.; try again"),
        ("short", "", r"short/w\.pth cannot be fetched .*\(only 3145728 of 3145729 bytes came\)"),
        ("missing", "", r"missing/w\.pth cannot be fetched .*404"),
    ],
)
def test_a_bad_download_is_not_kept(folder: Path, server: str, path: str, md5: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        official.obtain(official.Recipe(f"{server}/{path}/w.pth", md5, None))
    assert not list((folder / "torch" / "hub" / "checkpoints").iterdir())


def test_a_file_that_is_not_the_official_one(folder: Path) -> None:
    (folder / "official" / "w.pth").write_text("something else")
    with pytest.raises(InputError, match=r"official/w\.pth has the MD5 .*remove it, so that it is fetched again"):
        official.obtain(official.Recipe("http://127.0.0.1:9/w.pth", "ffff", None))


def test_offline_names_the_address_and_the_remedy(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch.main("dino_vits16", str(folder / "out.safetensors"))
    assert "http://127.0.0.1:9/dino_deitsmall16_pretrain.pth cannot be fetched" in str(caught.value)
    assert "put it as dino_deitsmall16_pretrain.pth into a folder, and set UNSEG_WEIGHTS" in str(caught.value)


def test_a_missing_folder_of_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_WEIGHTS", str(folder / "nowhere"))
    with pytest.raises(InputError, match=r"UNSEG_WEIGHTS is .*nowhere: no such folder"):
        official.obtain(official.RECIPES["dino_vits16"])


def test_recipes() -> None:
    for recipe in official.RECIPES.values():
        assert recipe.url.startswith("https://dl.fbaipublicfiles.com/")
        assert recipe.file.endswith((".pth", ".pth.tar"))
    assert [r.patch for r in official.RECIPES.values()] == [16, 8, None, None]
    with pytest.raises(InputError, match=r"there are no weights 'dino'; choose from dino_vits16, dino_vits8"):
        fetch.main("dino", "out.safetensors")
