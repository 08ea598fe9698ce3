"""DeepLab-v3: a dilated ResNet with a pyramid of dilated convolutions on its last map (Chen et al., arXiv:1706.05587, 3.3).

The head equals torchvision's DeepLabHead, names and initial values included. It is copied because importing torchvision takes
as long as importing torch (4 to 7 s).

Shapes: B images, H rows, W columns, C labels, D channels of the ResNet's last map, F channels of the head.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unseg.models import resnet


def conv_block(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, batch norm, ReLU."""
    return [resnet.conv(in_channels, out_channels, kernel, 1, dilation), nn.BatchNorm2d(out_channels), nn.ReLU()]


class ImagePooling(nn.Sequential):
    """The mean over the map, at each position: [B, D, h, w] to [B, F, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_block(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, a 3x3 convolution per rate, and image pooling; [B, F, h, w]."""

    def __init__(self, in_channels: int, rates: Sequence[int], out_channels: int) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv_block(in_channels, out_channels, 1))]
        branches += [nn.Sequential(*conv_block(in_channels, out_channels, 3, rate)) for rate in rates]
        self.convs = nn.ModuleList([*branches, ImagePooling(in_channels, out_channels)])
        self.project = nn.Sequential(*conv_block(len(self.convs) * out_channels, out_channels, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project(torch.cat([branch(x) for branch in self.convs], 1)))


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
        """The input of the last layer, a 1x1 convolution: [B, F, H / stride, W / stride]."""
        return cast(Tensor, self.head[:-1](self.body(x)[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], normalised, to logits [B, C, H, W]."""
        logits = self.head[-1](self.features(x))
        return F.interpolate(logits.float(), x.shape[-2:], mode="bilinear", align_corners=False)
