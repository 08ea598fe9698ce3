"""ResNets for the detector and the segmenter: any width, dilated or not, from checkpoint or self-supervised weights.

He et al., arXiv:1512.03385, Table 1, with the stride of a bottleneck in its 3x3 convolution. Names and initial values are those
that torchvision and timm share; written out here because importing either takes longer than importing torch.

Shapes: B images, H rows, W columns.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from unseg.core.console import InputError
from unseg.models.weights import RANDOM_INIT, resnet_state

STAGES = ("layer1", "layer2", "layer3", "layer4")


def conv(inside: int, outside: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Without bias; padded so that stride 1 keeps the size."""
    return nn.Conv2d(inside, outside, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `dilations` are theirs."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, dilations: tuple[int, int], downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(inside, width, 3, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)  # at first the block does nothing
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one has the first of `dilations`."""

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int, dilations: tuple[int, int], downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(inside, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(shortcut), inplace=True)


LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """A ResNet without pooling and classifier.

    Args:
        widths: channels of each stage's 3x3 convolutions.
        stride: of the last stage, against the image: 32, or 16 or 8 by dilation.
    """

    def __init__(self, arch: str, widths: list[int], stride: int) -> None:
        super().__init__()
        block, depths = LAYERS[arch]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inside, reached, before = 64, 4, 1  # channels, stride and dilation so far
        for i, (name, width, depth) in enumerate(zip(STAGES, widths, depths, strict=True)):
            step = 2 if i and reached < stride else 1
            dilation = before * 2 if i and step == 1 else before
            blocks = nn.Sequential()
            for _ in range(depth):
                outside, downsample = width * block.expansion, None
                if step != 1 or inside != outside:
                    downsample = nn.Sequential(conv(inside, outside, 1, step), nn.BatchNorm2d(outside))
                blocks.append(block(inside, width, step, (before, dilation), downsample))
                reached, inside, before, step = reached * step, outside, dilation, 1
            self.add_module(name, blocks)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and not part.weight.is_meta:  # on meta, init imports the compiler: seconds
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the four stages' maps."""
        maps = []
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, stride=2, padding=1)
        for name in STAGES:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps


def check(key: str, arch: str, width: int, frozen: int) -> None:
    """Raises ValueError for what `build` cannot make; key is the params group."""
    if arch not in LAYERS:
        raise ValueError(f"{key}.arch is {arch!r}; it must be one of {', '.join(LAYERS)}")
    if width < 1:
        raise ValueError(f"{key}.width is {width}; it must be at least 1 (64 is the standard one)")
    if not 0 <= frozen <= 4:
        raise ValueError(f"{key}.frozen_stages is {frozen}; it must be from 0 to 4")


class ResNetBackbone(nn.Module):
    """A ResNet without pooling and classifier; the stem and the first `frozen` stages learn nothing.

    Args:
        width: channels of the first stage's 3x3 convolutions; 64 is the standard.
        stride: of the last stage, against the image: 32, or 16 or 8 by dilation.
        frozen: 0 for none; n for the stem and the first n stages, whose batch norm stays fixed too.
    """

    def __init__(self, arch: str, width: int, stride: int = 32, frozen: int = 0) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.net = ResNet(arch, widths, stride)
        self.channels = [w * LAYERS[arch][0].expansion for w in widths]
        self.frozen = frozen
        for part in self.frozen_parts():
            part.requires_grad_(False)

    def frozen_parts(self) -> list[nn.Module]:
        names = ("conv1", "bn1", *STAGES[: self.frozen]) if self.frozen else ()
        return [getattr(self.net, name) for name in names]

    def train(self, mode: bool = True) -> "ResNetBackbone":
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the four stages' maps."""
        maps: list[Tensor] = self.net(x)
        return maps


def initialise(body: ResNetBackbone, path: str, key: str) -> None:
    """Load self-supervised weights (MoCo-v2 or DINO) into the body; RANDOM_INIT leaves it as it is.

    Raises:
        InputError: a key or a shape that does not fit.
    """
    if path == RANDOM_INIT:
        return
    state, want = resnet_state(path), body.net.state_dict()
    for name in sorted(want.keys() | state.keys()):
        have, need = (list(s[name].shape) if name in s else None for s in (state, want))
        if have != need:
            raise InputError(f"{path}: {name} has shape {have}, {key} in params.yaml needs {need}")
    body.net.load_state_dict(state)
