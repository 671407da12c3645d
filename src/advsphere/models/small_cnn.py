"""A small convolutional network for grey digits of 8x8 to 16x16 pixels: adversarial training takes it seconds."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.models.head import LinearHead


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, each with batch norm and ReLU, and a linear head on a 2x2 grid of averages.

    (B, C, H, W) standardised images -> (B, num_classes) logits; about 50,000 weights for one channel and ten classes.
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
