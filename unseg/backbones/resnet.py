"""ResNets (timm's) for the detector and the segmenter: any width, dilated or not, from scratch or self-supervised weights.

Shapes: B images, H rows, W columns.
"""

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from unseg.backbones.weights import FRESH as FRESH
from unseg.backbones.weights import resnet_state
from unseg.console import InputError

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


def check(key: str, arch: str, width: int, frozen: int) -> None:
    """Raises ValueError for what `build` cannot make; key is the params group."""
    if arch not in LAYERS:
        raise ValueError(f"{key}.arch is {arch!r}; it must be one of {', '.join(LAYERS)}")
    if width < 1:
        raise ValueError(f"{key}.width is {width}; it must be at least 1 (64 is the standard one)")
    if not 0 <= frozen <= 4:
        raise ValueError(f"{key}.frozen_stages is {frozen}; it must be from 0 to 4")


class Body(nn.Module):
    """A ResNet without pooling and classifier; the stem and the first `frozen` stages learn nothing.

    Args:
        width: channels of the first stage's 3x3 convolutions; 64 is the standard.
        stride: of the last stage, against the image: 32, or 16 or 8 by dilation.
        frozen: 0 for none; n for the stem and the first n stages, whose batch norm stays fixed too.
    """

    def __init__(self, arch: str, width: int, stride: int = 32, frozen: int = 0) -> None:
        super().__init__()
        block, layers = LAYERS[arch]
        channels = tuple(width * 2**i for i in range(4))
        self.net = ResNet(  # timm's types say an instance of a block where it wants the class
            block,  # type: ignore[arg-type]
            layers,
            output_stride=stride,
            channels=channels,
            num_classes=0,
            global_pool="",
        )
        self.channels = [c * block.expansion for c in channels]
        self.frozen = frozen
        for part in self.still():
            part.requires_grad_(False)

    def still(self) -> list[nn.Module]:
        names = ("conv1", "bn1", *STAGES[: self.frozen]) if self.frozen else ()
        return [getattr(self.net, name) for name in names]

    def train(self, mode: bool = True) -> "Body":
        super().train(mode)
        for part in self.still():
            part.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the four stages' maps."""
        net, maps = self.net, []
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        for name in STAGES:
            x = getattr(net, name)(x)
            maps.append(x)
        return maps


def initialise(body: Body, path: str, key: str) -> None:
    """Load self-supervised weights (MoCo-v2 or DINO) into the body; FRESH leaves it as it is.

    Raises:
        InputError: a key or a shape that does not fit.
    """
    if path == FRESH:
        return
    state, want = resnet_state(path), body.net.state_dict()
    for name in sorted(want.keys() | state.keys()):
        have, need = (list(s[name].shape) if name in s else None for s in (state, want))
        if have != need:
            raise InputError(f"{path}: {name} has shape {have}, {key} in params.yaml needs {need}")
    body.net.load_state_dict(state)
