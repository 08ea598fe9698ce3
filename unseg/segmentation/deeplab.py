"""DeepLab-v3: a dilated ResNet, and a pyramid of dilated convolutions on its last map.

Chen et al., arXiv:1706.05587, section 3.3. Names and initial values are those of torchvision's DeepLabHead; written out here
because importing torchvision takes as long as importing torch.

Shapes: B images, H rows, W columns, C labels, D channels of the ResNet's last map, F channels of the head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unseg.models import resnet


def conv_block(inside: int, outside: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, batch norm, ReLU."""
    return [resnet.conv(inside, outside, kernel, 1, dilation), nn.BatchNorm2d(outside), nn.ReLU()]


class ImagePooling(nn.Sequential):
    """The mean of the whole map, at each of its places: [B, D, h, w] to [B, F, h, w]."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_block(inside, outside, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, a 3x3 one for each rate, and the image's mean; [B, F, h, w]."""

    def __init__(self, inside: int, rates: Sequence[int], outside: int) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_block(inside, outside, 1))]
        branches += [nn.Sequential(*conv_block(inside, outside, 3, rate)) for rate in rates]
        self.convs = nn.ModuleList([*branches, ImagePooling(inside, outside)])
        self.project = nn.Sequential(*conv_block(len(self.convs) * outside, outside, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], 1))
        return out


class DeepLab(nn.Module):
    """Logits at the resolution of the input; `channels` is F."""

    def __init__(
        self, arch: str, width: int, stride: int, rates: Sequence[int], labels: int, frozen: int = 0, channels: int = 256
    ) -> None:
        super().__init__()
        self.body = resnet.ResNetBackbone(arch, width, stride, frozen)
        pyramid = ASPP(self.body.channels[-1], rates, channels)
        self.head = nn.Sequential(pyramid, *conv_block(channels, channels, 3), nn.Conv2d(channels, labels, 1))

    def features(self, x: Tensor) -> Tensor:
        """What the last layer, a 1x1 convolution, sees: [B, F, H / stride, W / stride]."""
        out: Tensor = self.head[:-1](self.body(x)[-1])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], normalised, to logits [B, C, H, W]."""
        logits = self.head[-1](self.features(x))
        return F.interpolate(logits.float(), x.shape[-2:], mode="bilinear", align_corners=False)
