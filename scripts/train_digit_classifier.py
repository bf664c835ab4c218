"""Train the small classifier whose features give ``fd_digits``.

Deterministic: the same machine and versions give the same file, bit for bit. Only the training split is seen; the
accuracies on the other splits are printed, never used for a choice.

    python scripts/train_digit_classifier.py [output.safetensors]
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.data.base import Split
from scorefield.data.images import Digits
from scorefield.metrics.features import DigitClassifier, DigitFeatures

SEED = 0
EPOCHS = 60
BATCH = 64
OUTPUT = Path(__file__).parents[1] / "src/scorefield/metrics/weights/digits_classifier.safetensors"


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixels in both directions, over a background of ink-free paper."""
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    dy, dx = torch.randint(0, 3, (2, len(x), 1, 1), generator=generator)
    rows = torch.arange(8)[:, None] + dy
    columns = torch.arange(8)[None, :] + dx
    return padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]


def accuracy(net: nn.Module, split: Split) -> float:
    """Fraction of examples classified correctly."""
    assert split.labels is not None
    with torch.no_grad():
        return float((net(DigitFeatures.scale(split.x)).argmax(1) == split.labels).float().mean())


def train(split: Split) -> DigitClassifier:
    """Cross-entropy with shifted, slightly noisy images and smoothed labels; AdamW on a cosine schedule."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = DigitClassifier(DigitFeatures.dim)
    x, labels = DigitFeatures.scale(split.x), split.labels
    assert labels is not None
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].view(-1, BATCH):
            batch = shift(x[index], generator)
            batch = batch + 0.05 * torch.randn(batch.shape, generator=generator)
            loss = F.cross_entropy(net(batch), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    torch.set_num_threads(1)  # the order of sums, and so the file, depends on the number of threads
    torch.use_deterministic_algorithms(True)
    data = Digits()
    net = train(data.train())
    for name, split in (("train", data.train()), ("validation", data.validation()), ("test", data.test())):
        print(f"{name:>10}: accuracy {accuracy(net, split):.4f}")
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, output)
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
