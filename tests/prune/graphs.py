"""Networks with what the zoo lacks; all take 3x8x8 images but `Encoder`, which takes [batch, 6, 24]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(nn.Module):
    """Dense concatenation: each layer reads all before it (1608.06993), with a transition between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12 + 8 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(12 + 8 * i, 8, 3, padding=1, bias=False) for i in range(3))
        self.transition = nn.Conv2d(36, 16, 1)
        self.last = nn.Conv2d(16, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(self.transition(x), 2)
        x = F.relu(self.norm(torch.cat([x, self.last(x)], 1)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Excited(nn.Module):
    """An inverted residual block with squeeze and excitation (1905.02244)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 24, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.bn3 = nn.BatchNorm2d(24)
        self.squeeze = nn.Linear(24, 6)
        self.excite = nn.Linear(6, 24)
        self.project = nn.Conv2d(24, 8, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn1(self.stem(x)))
        y = F.hardswish(self.bn3(self.depthwise(F.relu6(self.bn2(self.expand(x))))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1).flatten(1)))))
        x = x + self.bn4(self.project(y * gate[..., None, None]))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of the groups by turns, as every ShuffleNet writes it."""
    number, channels, height, width = x.shape
    return x.view(number, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class Shuffled(nn.Module):
    """Grouped convs with a shuffle between (1707.01083), then channels split, concatenated, shuffled (1807.11164)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze = nn.Conv2d(16, 32, 1, groups=4, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.bn2 = nn.BatchNorm2d(32)
        self.expand = nn.Conv2d(32, 24, 1, groups=2)
        self.bn3 = nn.BatchNorm2d(24)
        self.right = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.squeeze(F.relu(self.stem(x)))))
        x = F.relu(self.bn3(self.expand(self.bn2(self.depthwise(shuffled(x, 4))))))
        left, right = x.chunk(2, 1)
        x = shuffled(torch.cat([left, F.relu(self.bn4(self.right(right)))], 1), 2)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Attention(nn.Module):
    """Multi-head attention written out by hand, q, k and v in one layer or apart."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.all_head_size = width
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=i != 1) for i in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for part in parts)
        if hasattr(self, "qkv"):
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))
        return out


class Layer(nn.Module):
    """A layer of a transformer, norms first; attention is PyTorch's own, or written out."""

    def __init__(self, attention: str, width: int = 24, heads: int = 6) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        torch_own = attention == "torch"
        self.attention: nn.Module = (
            nn.MultiheadAttention(width, heads, batch_first=True)
            if torch_own
            else Attention(width, heads, fused=attention == "fused")
        )
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        attended = self.attention(y, y, y, need_weights=False)[0] if self._is_torch() else self.attention(y)
        x = x + attended
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out

    def _is_torch(self) -> bool:
        return isinstance(self.attention, nn.MultiheadAttention)


class Encoder(nn.Module):
    """A transformer with the three ways to write attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 24)
        self.position = nn.Parameter(torch.randn(1, 6, 24))
        self.layers = nn.Sequential(*(Layer(kind) for kind in ("torch", "apart", "fused")))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layers(self.embed(x) + self.position).mean(1))
        return out


class UNet(nn.Module):
    """Down by pooling, up once by a transposed conv and once by resizing, with skips that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.bottom, self.norm = nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(8, 16)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.mix2 = nn.Conv2d(24, 12, 3, padding=1)
        self.mix1 = nn.Conv2d(20, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(self.down1(x)))
        second = F.relu(self.bn2(self.down2(F.max_pool2d(first, 2))))
        x = F.relu(self.norm(self.bottom(F.max_pool2d(second, 2))))
        x = F.relu(self.mix2(torch.cat([self.up2(x), second], 1)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.head(F.relu(self.mix1(torch.cat([first, x], 1))))
        return out
