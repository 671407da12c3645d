"""The project's own networks for small images: SmallCNN, ResNets, PreActResNet-18 and wide residual networks.

Each takes standardised images (B, C, H, W) and returns logits (B, num_classes).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.errors import UserError, needs


class LinearHead(nn.Linear):
    """A linear layer in float32 or wider also under autocast, for the same precision as the hypersphere head."""

    @classmethod
    def of(cls, linear: nn.Linear) -> LinearHead:
        """The same layer, with the same parameters."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._logits(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._logits(input)

    def _logits(self, z: Tensor) -> Tensor:
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
    """Two 3x3 convolutions, each after batch norm and an activation, beside a shortcut.

    The shortcut has a convolution if the number of channels or the size changes. It starts from the raw input or, with
    `activated_shortcut`, from the activated one. With `deepmind` the activation is SiLU instead of ReLU, and where the
    size is halved, all padding is at the right and the bottom (TensorFlow's "SAME").
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        activated_shortcut: bool = False,
        deepmind: bool = False,
        shortcut_size: int = 1,
    ) -> None:
        super().__init__()
        self.activated_shortcut = activated_shortcut
        self.activation = F.silu if deepmind else F.relu
        self.pad_below = deepmind and stride == 2
        padding = 0 if self.pad_below else 1
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=padding, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = in_channels == channels and stride == 1
        around = padding if shortcut_size == 3 else 0
        self.shortcut = (
            None if same else nn.Conv2d(in_channels, channels, shortcut_size, stride, padding=around, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.bn1(x))
        residual = x
        if self.shortcut is not None:
            source = activated if self.activated_shortcut else x
            residual = self.shortcut(self._padded(source) if self.shortcut.kernel_size == (3, 3) else source)
        out: Tensor = self.conv2(self.activation(self.bn2(self.conv1(self._padded(activated)))))
        return out + residual

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1)) if self.pad_below else x


class PreActResNet18(nn.Module):
    """PreActResNet-18 (He et al. 2016, arXiv:1603.05027): four stages of two blocks, 64 to 512 channels.

    As in the code of Fast AT (Wong et al. 2020), it has a final batch norm, which other copies lack, and PyTorch's
    default initialisation. Differs from that code: global average pooling instead of 4x4 cells, so that it runs at any
    image size. With `deepmind` it is the one of Rebuffi et al. (2021), with SiLU and 3x3 shortcuts.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        final_norm: bool = True,
        activated_shortcut: bool = False,
        deepmind: bool = False,
    ) -> None:
        super().__init__()
        self.published = "dm-preactresnet" if deepmind else "preactresnet"
        self.activation = F.silu if deepmind else F.relu
        block = partial(
            PreActBlock,
            activated_shortcut=activated_shortcut,
            deepmind=deepmind,
            shortcut_size=3 if deepmind else 1,
        )
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(block(64, 64, 1), block(64, 64, 1))
        self.layer2 = nn.Sequential(block(64, 128, 2), block(128, 128, 1))
        self.layer3 = nn.Sequential(block(128, 256, 2), block(256, 256, 1))
        self.layer4 = nn.Sequential(block(256, 512, 2), block(512, 512, 1))
        self.bn = nn.BatchNorm2d(512) if final_norm else None
        self.fc = LinearHead(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = self.activation(self.bn(out))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    depth = 6n + 4 gives three groups of n blocks with 16, 32 and 64 times `width` channels; no dropout. As in the code
    of TRADES and of AT_HE, convolutions are initialised from He's normal distribution (fan-out) and the head's bias
    with zero. Their unused `sub_block1` is left out. With `deepmind` it is the one of Gowal et al. (2020), with SiLU.
    Raises UserError for an impossible depth or width.
    """

    def __init__(
        self, depth: int, width: int, num_classes: int, *, in_channels: int = 3, deepmind: bool = False
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or width < 1:
            raise UserError(
                f"there is no wrn-{depth}-{width}: depths are 6n + 4 (10, 16, ..., 34, ...), widths 1 or more"
            )
        self.published = "dm-wrn" if deepmind else "wrn"
        self.activation = F.silu if deepmind else F.relu
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.group1 = _group(blocks, widths[0], widths[1], stride=1, deepmind=deepmind)
        self.group2 = _group(blocks, widths[1], widths[2], stride=2, deepmind=deepmind)
        self.group3 = _group(blocks, widths[2], widths[3], stride=2, deepmind=deepmind)
        self.bn = nn.BatchNorm2d(widths[3])
        self.fc = LinearHead(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.group3(self.group2(self.group1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(self.activation(self.bn(out)), 1)
        logits: Tensor = self.fc(out.flatten(1))
        return logits


def _group(blocks: int, in_channels: int, channels: int, *, stride: int, deepmind: bool) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride, activated_shortcut=True, deepmind=deepmind)
    return nn.Sequential(first, *(PreActBlock(channels, channels, 1, deepmind=deepmind) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, num_classes: int, *, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet of 18, 34, 50, 101 or 152 layers with the stem for small images: 3x3, and no pooling."""
    needs("train", "torchvision")
    from torchvision.models import resnet  # here and not at the top: it takes seconds to import

    network: nn.Module = getattr(resnet, f"resnet{depth}")(num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.published = "cifar-resnet"  # type: ignore[assignment]  # see `advsphere.models.published`
    return network
