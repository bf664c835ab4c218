"""scorefield convert: make a run of a published checkpoint, so that sample and evaluate take it."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from scorefield.checkpoints import load
from scorefield.cli.app import refuse, run_app
from scorefield.cli.runs import build
from scorefield.errors import BadFileError, UserError
from scorefield.models import NetworkModel
from scorefield.recipe import recipe
from scorefield.records.checkpoints import write_tensors
from scorefield.records.files import write_atomically
from scorefield.records.rundir import RunDir

_ONLY_HERE = ("source", "checkpoint", "authors")
_LOOPS = ("fit", "validate", "test", "predict")  # of Lightning, whose states belong to a checkpoint


def main(config: DictConfig) -> None:
    """Write the configuration and a checkpoint that hold the published model."""
    asked: Any = OmegaConf.to_container(config, resolve=True)
    run = RunDir(Path(asked["run_dir"]))
    if run.config.exists():
        raise UserError(f"{run.path} holds a run already; give another run_dir")
    source, path = asked["source"], Path(asked["checkpoint"])
    authors = None if asked["authors"] is None else authors_config(Path(asked["authors"]))
    try:
        averaged = load(source, path, authors, "ema")
        raw = load(source, path, authors, "raw")
    except ValueError as error:  # what the authors' configuration cannot be
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    if not isinstance(averaged, NetworkModel):
        raise UserError(f"{path} holds a {type(averaged).__name__}; only networks are made a run of")
    stored = run_config({key: value for key, value in asked.items() if key not in _ONLY_HERE}, averaged)
    refuse(stored, "evaluation", f"a run of {path}")
    parts = build(stored)
    run.create()
    state = {f"model.{name}": tensor for name, tensor in raw.state_dict().items()}
    content = {
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": pl.__version__,
        "state_dict": state,
        "optimizer_states": [],
        "lr_schedulers": [],
        "loops": {f"{name}_loop": getattr(parts.trainer, f"{name}_loop").state_dict() for name in _LOOPS},
        "callbacks": {},
        "losses": torch.empty(0),
        "ema": {"updates": 1, "state_dict": dict(averaged.state_dict())},
    }
    write_tensors(run.checkpoint(0), content)
    write_atomically(run.config, yaml.safe_dump(stored, sort_keys=False).encode())
    count = sum(p.numel() for p in averaged.parameters())
    print(f"{source} network of {count:,} parameters under {averaged.schedule}: {run.path}")


def run_config(asked: dict[str, Any], model: NetworkModel) -> dict[str, Any]:
    """The configuration of a run with this model, its data seen through the model's transform."""
    node = recipe(model)
    transform = node.pop("transform", None)
    parts = {key: node[key] for key in ("schedule", "net", "parametrization")}
    data = dict(asked["data"])
    if transform is not None:
        data["dataset"] = {**data["dataset"], "transform": transform}
    return {**asked, **parts, "model": node, "data": data}


def authors_config(path: Path) -> dict[str, Any]:
    """The authors' configuration: a nested mapping, by itself or as the value of ``config``.

    Raises:
        BadFileError: the file holds something else.
    """
    try:
        values = yaml.safe_load(path.read_bytes())  # JSON is YAML
    except yaml.YAMLError as error:
        raise BadFileError(f"{path}: expected JSON or YAML, found {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise BadFileError(f"{path}: expected a mapping, found a {type(values).__name__}")
    inner = values.get("config", values)
    return inner if isinstance(inner, dict) else values


if __name__ == "__main__":
    run_app("convert", main)
