"""Evaluate images of any origin against reference statistics: scorefield evaluate images=PATH reference=FILE."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.cli.places import writing_to
from scorefield.cli.runs import fingerprint
from scorefield.cli.stats import extracted, make_extractor
from scorefield.data import Split
from scorefield.data.files import image_set, stored_arrays
from scorefield.data.transforms import from_uint8
from scorefield.errors import BadFileError, UserError
from scorefield.metrics.features import FeatureExtractor, file_hash
from scorefield.metrics.fidelity import FEWEST, fidelity
from scorefield.metrics.frechet import frechet_distance
from scorefield.metrics.reference import Reference
from scorefield.records.result import Measurement, Result, git_state, versions

_BATCH = 256


def read(path: Path, levels: int) -> Tensor:
    """Images (N, C, H, W) in grey levels below ``levels``, from a folder, a zip file, or a file of NumPy.

    Pictures are pixels 0..255 and brought to the nearest level; a file of NumPy holds levels, as ``images``, as
    ``samples`` or ``arr_0``, (N, H, W, C) or (N, C, H, W), uint8.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: it holds no such images.
    """
    if path.suffix not in (".npz", ".npy"):
        pixels = image_set(path)[0]
        return pixels if levels == 256 else from_uint8(pixels, levels)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected images=FOLDER, .zip, .npz or .npy")
    arrays = stored_arrays(path)
    x = next((arrays[name] for name in ("images", "samples", "arr_0") if name in arrays), None)
    if x is None or x.ndim != 4 or x.dtype != np.uint8 or not len(x) or not {1, 3} & {x.shape[1], x.shape[3]}:
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise BadFileError(f"{path}: expected images uint8 (N, H, W, C) or (N, C, H, W), C = 1 or 3, found {found}")
    if x.max() >= levels:
        raise BadFileError(f"{path}: expected grey levels below {levels}, found {x.max()}")
    return torch.from_numpy(np.ascontiguousarray(x if x.shape[1] in (1, 3) else x.transpose(0, 3, 1, 2)))


def measure(
    extractor: FeatureExtractor, images: Tensor, reference: Reference, standardise: bool, seed: int
) -> dict[str, Measurement]:
    """Fréchet distance, kernel distance, precision, recall and Inception score, each with its protocol."""
    found = extracted(extractor, images, {}, _BATCH, keep=True)
    assert found.features is not None
    ours, real = found.statistics, reference.statistics
    if standardise:
        ours, real = ours.divided_by(reference.statistics.std), real.divided_by(reference.statistics.std)
    kind = extractor.protocol()
    kind["extractor_weights"] = kind.pop("weights")
    origin = {key: reference.statistics.protocol.get(key) for key in ("data", "split")}
    common: dict[str, object] = {**kind, "n": len(images), "n_reference": real.n, **origin, "seed": seed}
    distance = {"standardised": standardise, **common}
    measured = {extractor.metric: Measurement(frechet_distance(ours, real), distance, "less")}
    for name, m in fidelity(extractor, found.features, reference.features, seed).items():
        spread = {} if m.spread is None else {"spread": float(m.spread)}
        better: Any = "less" if name == "kid" else "more"
        measured[f"{name}_{extractor.name}"] = Measurement(float(m.value), {**spread, **common, **m.settings}, better)
    return measured


def main(asked: dict[str, Any]) -> None:
    """Measure the images and write a record."""
    path = Path(asked["images"])
    for name, example in (("reference", "FILE, as `scorefield stats` writes it"), ("extractor", "inception")):
        if asked.get(name) is None:
            raise UserError(f"images={path} is measured against a reference; give {name}={example}")
    start = time.monotonic()
    reference = Reference.load(Path(asked["reference"]), asked["reference_n"])
    extractor = make_extractor(asked["extractor"], asked["device"])
    reference.require(extractor, Path(asked["reference"]))
    images = read(path, extractor.levels)
    if len(images) < FEWEST:
        raise UserError(f"images={path} are {len(images)}, too few to measure; give at least {FEWEST}")
    content = Split(images).checksum()  # other images at the same place are another measurement
    named = fingerprint({**asked, "out": None, "images_hash": content})
    out = Path(asked["out"] or Path("outputs") / "images" / f"{path.stem}-{named}")
    if (out / "result.json").exists() and Result.read(out / "result.json").config_hash != named:
        raise UserError(f"{out} holds another measurement; give another out")
    with writing_to(out):
        metrics = measure(extractor, images, reference, asked["standardise"], asked["seed"])
    origin = {
        "images": str(path),
        "images_hash": content,
        "reference": asked["reference"],
        "reference_hash": file_hash(Path(asked["reference"])),
    }
    result = Result(
        experiment=path.name,
        seed=asked["seed"],
        config_hash=named,
        metrics={key: Measurement(m.value, {**m.protocol, **origin}, m.better) for key, m in metrics.items()},
        cost={"evaluation_seconds": round(time.monotonic() - start, 2), "images": len(images)},
        versions=versions(),
        git=git_state(),
        command=shlex.join(["scorefield", Path(sys.argv[0]).stem, *sys.argv[1:]]),
    )
    result.write(out / "result.json")
    if reference.features is None:
        print(f"{asked['reference']} holds moments alone: kernel distance, precision and recall are left out")
    for name, metric in metrics.items():
        print(f"{name:<32} {metric.value:.6g}")
    print(f"record: {out / 'result.json'}")
