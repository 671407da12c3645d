"""The project's own networks for small images: SmallCNN, PreActResNet-18 and wide residual networks.

Each takes standardised images (B, C, H, W) and returns logits (B, num_classes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.errors import UserError


class LinearHead(nn.Linear):
    """A linear layer in float32 or wider also under autocast, for the same precision as the hypersphere head."""

    @classmethod
    def of(cls, linear: nn.Linear) -> LinearHead:
        """The same layer, with the same parameters."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(z.dtype, torch.float32)
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(z.to(dtype), self.weight.to(dtype), bias)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, each with batch norm and ReLU, and a linear head on a 2x2 average pooling.

    It has about 50,000 weights. Adversarial training on grey digits of 8x8 to 16x16 pixels takes seconds.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.conv3 = nn.Conv2d(48, 72, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(72)
        self.fc = LinearHead(72 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = F.relu(self.bn3(self.conv3(out)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(out, 2).flatten(1))
        return logits


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut.

    The shortcut has a convolution if the number of channels or the size changes. It starts from the raw input or, with
    `activated_shortcut`, from the activated one.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, activated_shortcut: bool = False) -> None:
        super().__init__()
        self.activated_shortcut = activated_shortcut
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = in_channels == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(activated if self.activated_shortcut else x)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + residual


class PreActResNet18(nn.Module):
    """PreActResNet-18 (He et al. 2016, arXiv:1603.05027): four stages of two blocks, 64 to 512 channels.

    As in the code of Fast AT (Wong et al. 2020), it has a final batch norm, which other copies lack, and PyTorch's
    default initialisation. Differs from that code: global average pooling instead of 4x4 cells, so that it runs at any
    image size.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.bn = nn.BatchNorm2d(512)
        self.fc = LinearHead(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        out = F.adaptive_avg_pool2d(F.relu(self.bn(out)), 1)
        logits: Tensor = self.fc(out.flatten(1))
        return logits


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    depth = 6n + 4 gives three groups of n blocks with 16, 32 and 64 times `width` channels; no dropout. As in the code
    of TRADES and of AT_HE, convolutions are initialised from He's normal distribution (fan-out) and the head's bias
    with zero. Their unused `sub_block1` is left out. Raises UserError for an impossible depth or width.
    """

    def __init__(self, depth: int, width: int, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or width < 1:
            raise UserError(
                f"there is no wrn-{depth}-{width}: depths are 6n + 4 (10, 16, ..., 34, ...), widths 1 or more"
            )
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.group1 = _group(blocks, widths[0], widths[1], stride=1)
        self.group2 = _group(blocks, widths[1], widths[2], stride=2)
        self.group3 = _group(blocks, widths[2], widths[3], stride=2)
        self.bn = nn.BatchNorm2d(widths[3])
        self.fc = LinearHead(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.group3(self.group2(self.group1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(F.relu(self.bn(out)), 1)
        logits: Tensor = self.fc(out.flatten(1))
        return logits


def _group(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride, activated_shortcut=True)
    return nn.Sequential(first, *(PreActBlock(channels, channels, 1) for _ in range(blocks - 1)))
