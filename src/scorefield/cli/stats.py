"""scorefield stats: features of a whole split, in a file that evaluations compare with."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from scorefield.cli.app import run_app
from scorefield.cli.runs import make, make_data
from scorefield.errors import UserError
from scorefield.metrics.features import FeatureExtractor, WeightsUnavailable
from scorefield.metrics.reference import Reference


def make_extractor(node: Any, device: str) -> FeatureExtractor:
    """The extractor of a configuration; missing weights are the user's to mend."""
    try:
        extractor: FeatureExtractor = make(node)()
    except WeightsUnavailable as error:
        raise UserError(str(error)) from error
    return extractor.to(device)


def extracted(
    extractor: FeatureExtractor,
    images: torch.Tensor,
    protocol: dict[str, str | int | None],
    batch_size: int,
    keep: bool,
) -> Reference:
    """Features of images, with progress."""
    with Progress(transient=True) as progress:
        task = progress.add_task("features", total=len(images))
        return Reference.of(extractor, images, protocol, batch_size, keep, lambda n: progress.advance(task, n))


def main(config: DictConfig) -> None:
    """Write the features of a split."""
    asked: Any = OmegaConf.to_container(config, resolve=True)
    out, split = Path(asked["out"]), asked["split"]
    if out.suffix != ".npz":
        raise UserError(f"out={out} must end in .npz")
    if out.exists():
        raise UserError(f"{out} is there already; give another out, or remove it")
    data = make_data(asked)
    kind: Any = get_class(asked["extractor"]["_target_"])  # before its weights are asked for
    if data.levels != kind.levels:
        raise UserError(
            f"{kind.name} takes images of {kind.levels} grey levels, and {data.name} has {data.levels or 'none'}; "
            "choose another extractor or data"
        )
    extractor = make_extractor(asked["extractor"], asked["device"])
    part = {"train": data.train, "validation": data.validation, "test": data.test}[split]()
    protocol: dict[str, str | int | None] = {"data": data.name, "split": split, "images": part.checksum()}
    found = extracted(extractor, part.x, protocol, asked["batch_size"], asked["features"])
    found.save(out)
    print(f"{len(part)} images of {data.name}, {split}: {extractor.dim} features by {extractor.name}: {out}")


if __name__ == "__main__":
    run_app("stats", main)
