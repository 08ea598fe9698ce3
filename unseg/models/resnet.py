"""ResNets for the detector and the segmenter: any width, dilated or not, from checkpoint or self-supervised weights.

He et al., arXiv:1512.03385, Table 1; a bottleneck has its stride in the 3x3 convolution. Names and initial values are those of
torchvision and timm, which are not imported because that takes longer than importing torch.

Shapes: B images, H rows, W columns.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from unseg.models.weights import RANDOM_INIT, load_strictly, resnet_state

STAGES = ("layer1", "layer2", "layer3", "layer4")


def conv(inside: int, outside: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Without bias; padded so that stride 1 keeps the size."""
    return nn.Conv2d(inside, outside, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with these dilations, and a shortcut."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, dilations: tuple[int, int], downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(inside, width, 3, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)  # the block is the identity at first
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 one has the first of `dilations`."""

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
    """The network of `ResNetBackbone`. widths: channels of the 3x3 convolutions of each stage."""

    def __init__(self, arch: str, widths: list[int], stride: int) -> None:
        super().__init__()
        block, depths = LAYERS[arch]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inside, reached, before = 64, 4, 1  # channels, stride and dilation of the input
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
        """[B, 3, H, W] to the feature maps of the four stages."""
        maps = []
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, stride=2, padding=1)
        for name in STAGES:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps


class ResNetBackbone(nn.Module):
    """A ResNet without pooling and classifier whose first `frozen` stages are not trained.

    width: channels of the first stage's 3x3 convolutions, usually 64. stride: of the last stage; 16 and 8 by dilation.
    frozen: 0: none; n: the stem and the first n stages, including their batch norm.
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
        """[B, 3, H, W] to the feature maps of the four stages."""
        maps: list[Tensor] = self.net(x)
        return maps


def initialise(backbone: ResNetBackbone, path: str, key: str) -> None:
    """Load self-supervised weights; RANDOM_INIT changes nothing. key: the group of params.yaml, for the InputError."""
    if path != RANDOM_INIT:
        load_strictly(backbone.net, resnet_state(path), path, f"{key} in params.yaml")
