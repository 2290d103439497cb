"""A network of your own: `tlc compress model.pt --arch net.py:build`.

The function returns the untrained network. If it takes `num_classes`, tlc finds the number in the weights.
"""

from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x): a block that tlc can leave out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) in and out."""
        return nn.functional.relu(x + self.body(x))


def build(num_classes: int = 10) -> nn.Module:
    """Return the network: (N, 1, 8, 8) -> (N, num_classes)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.Sequential(*(Residual(32) for _ in range(4))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
