"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.errors import UserError
from advsphere.models.head import LinearHead


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU; a shortcut that widens starts from the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        out = self.conv2(out)
        return out + residual


class WideResNet(nn.Module):
    """WRN-depth-width: (B, C, H, W) standardised images -> (B, num_classes) logits.

    depth = 6n + 4 gives three groups of n blocks with 16, 32 and 64 times `width` channels; no dropout. Convolutions
    start from He's normal distribution (fan-out) and the head's bias from zero, as in the code of TRADES and of AT_HE.
    Their networks also hold a `sub_block1` that never runs; it is left out.
    Raises UserError for a depth or width that does not exist.
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
    later = [WideBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(WideBlock(in_channels, channels, stride), *later)
