"""The README's picture, from a finished run: python docs/images/make.py [outputs/digits]."""

import sys
from pathlib import Path

from PIL import Image

from scorefield.records.rundir import RunDir

GAP = 24  # pixels between the two grids


def main() -> None:
    """Put the run's samples and as many test images side by side."""
    run = RunDir(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/digits"))
    samples, real = (Image.open(path) for path in (run.final_samples, run.real_samples))
    both = Image.new("RGB", (samples.width + GAP + real.width, max(samples.height, real.height)), "white")
    both.paste(samples, (0, 0))
    both.paste(real, (samples.width + GAP, 0))
    both.save(Path(__file__).with_name("digits.png"), optimize=True)


if __name__ == "__main__":
    main()
