"""Make `pytorch_vgg.npz`: weights, faces and logits of usef-kh's network, computed by PyTorch, for tests without it.

Run from the project's folder, with the extra `torch`: python tests/golden/make_pytorch.py
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fer_keras.drawn import draw

FILTERS, UNITS, SIDE, CROP = (64, 128, 256, 512), 4096, 48, 40


class Vgg(nn.Module):
    """The network of github.com/usef-kh/fer (`models/vgg.py`) by its description and names; width 1 has its shapes.

    All weights are random. Batch statistics are those of noise, and some variances are so small that another epsilon
    changes the logits.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 7, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        before = 1
        for stage, filters in enumerate(FILTERS, start=1):
            for letter in "ab":
                after = int(filters * width)
                setattr(self, f"conv{stage}{letter}", nn.Conv2d(before, after, 3, padding=1))
                setattr(self, f"bn{stage}{letter}", nn.BatchNorm2d(after))
                before = after
        before *= (CROP // 16) ** 2
        for number, after in enumerate((int(UNITS * width), int(UNITS * width), num_classes), start=1):
            setattr(self, f"lin{number}", nn.Linear(before, after))
            before = after
        for layer in self.children():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the statistics of what it has seen
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.3)
            else:
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
            if isinstance(layer, nn.Conv2d):  # filters of very different strength
                layer.weight.data *= 10 ** torch.empty(len(layer.weight), 1, 1, 1).uniform_(-2, 0)
        with torch.no_grad():
            self.train()(torch.rand(32, 1, CROP, CROP))
        self.eval()

    def forward(self, x):
        """From float (n, 1, 40, 40), 0–1, to logits (n, num_classes)."""
        for stage in range(1, len(FILTERS) + 1):
            for letter in "ab":
                x = getattr(self, f"conv{stage}{letter}")(x)
                x = torch.relu(getattr(self, f"bn{stage}{letter}")(x))
            x = torch.max_pool2d(x, 2)
        x = x.flatten(1)  # channels, then rows, then columns
        x = torch.relu(self.lin1(x))
        x = torch.relu(self.lin2(x))
        return self.lin3(x)

    @torch.no_grad()
    def logits(self, images: np.ndarray, top: int = 4, left: int = 4) -> np.ndarray:
        """Logits of one crop of uint8 faces (n, 48, 48, 1); the central one by default."""
        crops = images[:, top : top + CROP, left : left + CROP, 0]
        return self(torch.from_numpy(crops.copy()).float()[:, None] / 255).numpy()

    def ten_crop(self, images: np.ndarray) -> np.ndarray:
        """The mean of the logits of the ten crops, as usef-kh's `evaluate.py` takes it."""
        corners = [(0, 0), (0, SIDE - CROP), (SIDE - CROP, 0), (SIDE - CROP, SIDE - CROP), (4, 4)]
        return np.mean(
            [self.logits(view, *corner) for view in (images, images[:, :, ::-1]) for corner in corners], axis=0
        )


def main():
    network = Vgg(width=1 / 32)
    images = draw(280).images[:8]
    arrays = {f"weights.{name}": value.numpy() for name, value in network.state_dict().items()}
    arrays |= {"images": images, "logits": network.logits(images), "ten_crop": network.ten_crop(images)}
    np.savez_compressed(Path(__file__).with_name("pytorch_vgg.npz"), **arrays)


if __name__ == "__main__":
    main()
