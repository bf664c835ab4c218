"""scorefield sample: draw samples from a run's model into a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from scorefield.cli.app import refuse, run_app
from scorefield.cli.runs import UserError, fingerprint, load_run, make, make_data, stored_config
from scorefield.records.figures import scatter2d
from scorefield.records.files import write_atomically
from scorefield.records.pictures import save_gif, save_png
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks.samples import Frames, draw, picture


def main(config: DictConfig) -> None:
    """Draw ``n`` samples; write them as numbers, as a picture and as the path of the first ones."""
    asked = OmegaConf.to_container(config, resolve=True)
    assert isinstance(asked, dict)
    run = RunDir(Path(asked["run_dir"]))
    stored = stored_config(run)
    node = asked.get("sampler") or stored["sampler"]
    refuse({**stored, "sampler": node}, "drawing", f"sampling from {run.path}")
    protocol: dict[str, Any] = {key: asked[key] for key in ("run_dir", "weights", "seed", "n", "label")}
    protocol["sampler"] = node
    name = f"{fingerprint({'sampler': node, 'weights': asked['weights'], 'label': asked['label']})}-seed{asked['seed']}"
    out = Path(asked["out"] or run.path / "drawn" / name)
    if (out / "samples.npz").exists():
        raise UserError(f"{out} already holds samples; give another out")
    data = make_data(stored)
    cond_label = _label(asked["label"], stored, data.classes)
    model = load_run(run.path, asked["weights"]).to(asked["device"])
    sampler = make(node)
    device = torch.device(asked["device"])
    batches = torch.arange(asked["n"]).split(asked["batch_size"])
    frames = Frames(getattr(sampler, "steps", 1))
    parts, nfe = [], 0.0
    for number, batch in enumerate(track(batches, description="sampling")):
        cond = None if cond_label is None else {"label": torch.full((len(batch),), cond_label, device=device)}
        trace = frames if number == 0 else None
        x, nfe = draw(model, sampler, data.shape, batch.tolist(), asked["seed"], device, cond, trace)
        parts.append(data.from_model(x).cpu())
    samples = torch.cat(parts)
    out.mkdir(parents=True, exist_ok=True)
    if len(data.shape) == 3:
        save_png(out / "samples.png", picture(data, samples, asked["columns"]))
        states = [picture(data, data.from_model(state), asked["columns"]) for state in frames.states]
        save_gif(out / "trajectory.gif", states)
    elif data.shape == (2,):
        scatter2d(out / "samples.png", {"data": data.test().x[: len(samples)], "samples": samples})
    write_atomically(out / "protocol.json", json.dumps({**protocol, "nfe": nfe}, indent=2).encode())
    np.savez_compressed(out / "samples.npz", samples=samples.numpy())
    print(f"{len(samples)} samples, {nfe:g} evaluations each: {out}")


def _label(label: int | None, stored: dict[str, Any], classes: int | None) -> int | None:
    """The class to draw, refused where the model knows none."""
    if label is None:
        return None
    if not stored["data"].get("conditional", False):
        raise UserError(f"label={label} was asked for, but {stored['name']} was trained without classes")
    if classes is None or not 0 <= label < classes:
        raise UserError(f"label={label} must be between 0 and {(classes or 0) - 1}")
    return label


if __name__ == "__main__":
    run_app("sample", main)
