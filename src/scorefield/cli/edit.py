"""scorefield edit: make other pictures of given ones through a run's model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from scorefield.cli.app import refuse, run_app
from scorefield.cli.pictures import Given, complete
from scorefield.cli.places import save_arrays, unused, writing_to
from scorefield.cli.runs import UserError, fingerprint, load_run, make, make_data, stored_config
from scorefield.cli.sample import known_label, steers_by_a_classifier, weights_of
from scorefield.editing import Edit
from scorefield.noise import IndexedNoise
from scorefield.records.files import write_atomically
from scorefield.records.pictures import image_rows, save_png
from scorefield.records.rundir import RunDir

_ASKED = ("weights", "label", "edit", "guidance", "images", "examples")


def main(config: DictConfig) -> None:
    """Edit each picture; write a row for each, the picture first, and the numbers."""
    asked: Any = OmegaConf.to_container(config, resolve=True)
    run = RunDir(Path(asked["run_dir"]))
    stored = stored_config(run)
    parts = {"sampler": asked["sampler"], "guidance": asked["guidance"]}
    refuse({**stored, **parts}, "drawing", f"editing through {run.path}")
    told = {key: asked[key] for key in _ASKED if asked[key] is not None and asked[key] != {}} | weights_of(run)
    place = asked["out"] or run.path / "drawn" / f"{fingerprint(told)}-seed{asked['seed']}"
    out = unused(place, "edited.npz", "edited pictures")
    data = make_data(stored)
    given = Given.read(asked, data)
    device = torch.device(asked["device"])
    by_classifier = steers_by_a_classifier(asked["guidance"])
    label = known_label(asked["label"], stored, data.classes, by_classifier)
    labels = given.labels if label is None else torch.full((len(given.x),), label)
    cond = None
    if (stored["data"].get("conditional", False) or by_classifier) and labels is not None:
        cond = {"label": labels.to(device)}
    model = load_run(run.path, asked["weights"])
    model = (complete(asked["guidance"], model=model) if asked["guidance"] else model).to(device)
    edit: Edit = make(asked["edit"])
    noise = IndexedNoise(asked["seed"], "edit", range(len(given.x)))
    with writing_to(out):
        try:
            edited = edit(model, data.observable(given.x).to(device), cond, noise)
        except ValueError as error:  # a level that the schedule has not, a class that is not told
            raise UserError(f"edit: {error}") from error
        made = [data.from_model(x).cpu() for x in edited]
        protocol = {"run_dir": asked["run_dir"], "seed": asked["seed"], **told}
        write_atomically(out / "protocol.json", json.dumps(protocol, indent=2).encode())
        save_arrays(
            out / "edited.npz",
            edited=torch.stack(made, 1).numpy(),
            given=given.x.numpy(),
            names=np.array(given.names),
        )
        save_png(out / "edited.png", image_rows([data.display(x) for x in (given.x, *made)]))
    print(f"{len(given.x)} pictures, {len(made)} edited forms each: {out}")


if __name__ == "__main__":
    run_app("edit", main)
