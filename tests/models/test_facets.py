"""Queries, keys, values and tokens of a layer (unseg/models/facets.py), against hooks on timm's own attention."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.models import facets, vit

SMALL = {"num_classes": 0, "depth": 3, "embed_dim": 48, "num_heads": 3, "dynamic_img_size": True}
FAMILIES: dict[str, dict[str, Any]] = {  # timm's architectures, small: CrOC, iBOT, MSN and Leopart are DINO's
    "vit_small_patch16_224": {"img_size": 64},  # DINO, MAE: `vit_base_patch16_224`
    "vit_base_patch16_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_small_patch16_dinov3": {"img_size": 64},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 64},
    "vit_small_plus_patch16_dinov3_qkvb": {"img_size": 64},
    "eva02_small_patch14_224": {"img_size": 56},  # separate q, k and v; its keys have no bias
    "vit_small_patch16_rope_mixed_224": {"img_size": 64},  # another rotation in each block
}


def family(arch: str) -> vit.ViT:
    """A network of a trained one's scale: random weights that matter, biases and LayerScale among them."""
    torch.manual_seed(0)
    model = vit.checked(timm.create_model(arch, pretrained=False, **{**SMALL, **FAMILIES[arch]}), arch)
    for name, x in model.named_parameters():
        if x.ndim > 1 and ("pos_embed" in name or "token" in name):
            nn.init.normal_(x, 0, 0.3)
        elif name.endswith(("bias", "gamma", "gamma_1", "gamma_2")):
            nn.init.normal_(x, 0.2, 0.3)
        elif x.ndim > 1:
            nn.init.normal_(x, 0, 1.5 / x[0].numel() ** 0.5)
    return model.eval()


def hooked(model: vit.ViT, images: Tensor, layer: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Outputs of timm's own projections in a block, its output after the final norm, and what it gives the attention kernel."""
    block, seen = model.blocks[layer], {}
    attention: Any = block.attn
    handles = []

    def note(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda m, i, o: seen.setdefault(name, o)))

    def kernel(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        calls.append((q, k, v))
        return attend(q, k, v)

    calls: list[tuple[Tensor, ...]] = []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", kernel)
    note(block, "tokens")
    note(attention.q_norm, "queries")  # the identity, where there is none: the projection itself
    note(attention.k_norm, "keys")
    final = model.forward_features(images)
    for handle in handles:
        handle.remove()
    monkeypatch.undo()
    q, k, seen["values"] = calls[layer % len(model.blocks)]
    return {**seen, "tokens": model.norm(seen["tokens"]), "rotated_query": q, "rotated_keys": k, "final": final}


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("arch", FAMILIES)
@torch.no_grad()
def test_facets_are_those_of_timms_attention(arch: str, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, patch = family(arch), FAMILIES[arch]["img_size"] // 4
    images = torch.randn(2, 3, 5 * patch, 3 * patch)  # another size than that of the position embeddings
    want, prefix = hooked(model, images, layer, monkeypatch), model.num_prefix_tokens
    assert want["keys"].shape == (2, 3, prefix + 15, 16)
    for facet in ("queries", "keys", "values"):
        got = facets.read(model, images, facet, layer)
        assert (got.features - want[facet][:, :, prefix:]).abs().max() < 1e-5
        assert (got.query - want["rotated_query"][:, :, 0]).abs().max() < 1e-5
        assert (got.keys - want["rotated_keys"][:, :, prefix:]).abs().max() < 1e-5
    got = facets.read(model, images, "tokens", layer)
    assert (got.features[:, 0] - want["tokens"][:, prefix:]).abs().max() < 1e-5
    if layer == -1:
        assert (vit.tokens(model, images) - want["final"]).abs().max() < 1e-5
        assert (got.features[:, 0] - vit.tokens(model, images)[:, prefix:]).abs().max() < 1e-5
    rotates = (want["keys"] - want["rotated_keys"]).abs().max() > 0.1
    assert rotates == ("dinov3" in arch or "eva02" in arch or "rope" in arch)  # the features are without positions


@pytest.mark.parametrize("arch", FAMILIES)
@torch.no_grad()
def test_the_tokens_of_a_block(arch: str) -> None:
    """The last block's are timm's own; an earlier block's, seen by a hook, have mean 0 and deviation 1 in each token."""
    model, seen = family(arch), []
    handle = model.blocks[1].register_forward_hook(lambda m, i, o: seen.append(o))
    images = torch.randn(2, 3, *(x * FAMILIES[arch]["img_size"] // 4 for x in (5, 3)))
    final = model.forward_features(images)
    handle.remove()
    assert torch.equal(facets.block_tokens(model, images), final)
    assert torch.equal(facets.block_tokens(model, images, 2), final)
    centred = seen[0] - seen[0].mean(2, keepdim=True)
    want = centred / centred.square().mean(2, keepdim=True).add(getattr(model.norm, "eps", 1e-6)).sqrt()
    for layer in (1, -2):
        assert torch.allclose(facets.block_tokens(model, images, layer), want, atol=1e-4)


@torch.no_grad()
def test_query_and_key_norms_belong_to_the_facets() -> None:
    torch.manual_seed(0)
    norm = {"qk_norm": True, "norm_layer": nn.LayerNorm}
    model = timm.models.VisionTransformer(64, 16, 3, 0, "token", 48, 2, 3, **norm, dynamic_img_size=True).eval()
    vit.checked(model, "a ViT")
    assert type(model.blocks[0].attn) is timm.layers.Attention  # `CpuAttention` would leave the norms out
    keys = facets.read(model, torch.randn(1, 3, 64, 64)).features
    assert (keys.square().mean(-1) - 1).abs().max() < 0.01


def test_a_layer_that_is_not_there() -> None:
    model = family("vit_small_patch16_224")
    for layer in (3, -4):
        with pytest.raises(InputError, match=rf"mine\.layer is {layer}; this ViT has 3 blocks: from -3 to 2"):
            facets.read(model, torch.randn(1, 3, 64, 64), "keys", layer)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet18", "ResNet is no ViT of plain blocks"),
        ("vit_small_patch16_18x2_224", "no ViT of plain blocks"),
        ("vit_base_patch16_siglip_224", "no CLS token"),
    ],
)
def test_networks_whose_facets_cannot_be_read_are_refused(arch: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        vit.checked(
            timm.create_model(
                arch, pretrained=False, **({} if arch == "resnet18" else {"depth": 1, "embed_dim": 48, "num_heads": 3})
            ),
            arch,
        )
