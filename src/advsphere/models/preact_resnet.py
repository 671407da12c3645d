"""PreActResNet-18 for small images (He et al. 2016, arXiv:1603.05027), as in the code of Fast AT (Wong et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.models.head import LinearHead


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut that starts from the raw input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == channels
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + residual


class PreActResNet18(nn.Module):
    """Four stages of two blocks, 64 to 512 channels: (B, C, H, W) standardised images -> (B, num_classes) logits.

    As in the Fast AT code: a final batch norm (which other copies lack) and PyTorch's default initialisation. Differs
    in averaging over all that is left of the image, where that code takes 4x4 cells, so that it runs at any size.
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
