"""From a resolved configuration to the objects of a run, and from a run's directory back to its model."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from scorefield.cli.stored import stored_config
from scorefield.data import Data
from scorefield.errors import UserError
from scorefield.models import ScoreModel
from scorefield.records import checkpoints
from scorefield.records.result import config_hash
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks import Agreement, Stopwatch
from scorefield.training.checkpoint_io import RunCheckpointIO
from scorefield.training.datamodule import DataModule
from scorefield.training.ema import EMA, averaged_state
from scorefield.training.loggers import RunLogger
from scorefield.training.module import ScoreModule
from scorefield.training.processes import end_together

Config = Mapping[str, Any]
Weights = Literal["ema", "raw"]

# What says where a run is kept or how it is started, but not what it computes.
_PLACE = ("run_dir", "outputs", "fresh", "seed", "objective_metric")
_FEW = 4  # differences that a message names


def fingerprint(config: Config) -> str:
    """Eight hexadecimal digits that name what a configuration computes, whatever its seed and place."""
    named = {key: value for key, value in config.items() if key not in _PLACE}
    return config_hash({key: _without_place(value, config) for key, value in named.items()})[:8]


def unlike(config: Config, other: Config) -> str:
    """The settings in which what two configurations compute differs, seed included: the first few, key by key."""
    ours, theirs = (
        dict(_flat({k: _without_place(v, c) for k, v in c.items() if k not in _PLACE or k == "seed"}))
        for c in (config, other)
    )
    absent = "not there"
    apart = {
        key: (theirs.get(key, absent), ours.get(key, absent))
        for key in {**theirs, **ours}
        if ours.get(key, absent) != theirs.get(key, absent)
    }
    told = [  # once, where it is interpolated elsewhere
        f"{key}: {there} there, {here} here"
        for key, (there, here) in apart.items()
        if not any(key.endswith(f".{other}") and values == (there, here) for other, values in apart.items())
    ]
    return "; ".join(told[:_FEW]) + (f"; and {len(told) - _FEW} more" if len(told) > _FEW else "")


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by dotted key."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _without_place(value: Any, config: Config) -> Any:
    """A configuration with the run's directory and seed, interpolated all over it, taken out again."""
    if isinstance(value, Mapping):
        return {k: None if k in ("run_dir", "seed") else _without_place(v, config) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_place(v, config) for v in value]
    return value


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with the run's directory filled in."""
    if config.run_dir is None:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        config.run_dir = str(Path(config.outputs) / config.name / f"{fingerprint(plain)}-seed{config.seed}")
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values)


def make(node: Any, **extra: Any) -> Any:
    """Build the object that a configuration node describes, from plain containers all the way down."""
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):  # another run that cannot be read says so itself
            raise cause from error
        if isinstance(cause, ValueError | MisconfigurationException):  # how constructors refuse an argument
            raise UserError(f"{node['_target_']}: {cause}") from error
        raise


def make_data(config: Config) -> Data:
    """The data set, checked against the shape and classes that its configuration declares to the networks."""
    data: Data = make(config["data"]["dataset"])
    declared = tuple(config["data"]["shape"])
    if data.shape != declared or data.classes != config["data"]["classes"]:
        raise UserError(
            f"data.shape={list(declared)} and data.classes={config['data']['classes']} do not describe {data.name}, "
            f"which has shape {list(data.shape)} and classes {data.classes}"
        )
    return data


@dataclass(frozen=True)
class Parts:
    """Everything of a run, built and connected.

    Args:
        module: model, objective and optimiser.
        data: the data set and its batches.
        trainer: Lightning's trainer with callbacks and loggers.
    """

    module: ScoreModule
    data: DataModule
    trainer: pl.Trainer

    @property
    def ema(self) -> EMA | None:
        """The average of the weights, if the run keeps one."""
        return next((c for c in self.trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]


def build(config: Config) -> Parts:
    """Instantiate a run: everything that its configuration names, seeded."""
    data = make_data(config)
    seed = config["seed"]
    torch.manual_seed(seed)  # initial weights
    conditional = bool(config["data"].get("conditional", False))
    module = ScoreModule(
        make(config["model"]),
        make(config["objective"]),
        make(config["optim"]["optimizer"]),
        make(config["optim"]["lr_schedule"]),
        seed,
        conditional,
        config["data"].get("label_dropout", 0.0),
    )
    callbacks = [make(node) for node in (config["ema"], *config["callbacks"].values()) if node]
    callbacks += [Stopwatch(), Agreement(f"{fingerprint(config)}-seed{seed}")]
    loggers = [make(node) for node in config["logger"].values() if node is not None]
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.describe(config)
    trainer = make(
        config["trainer"],
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=config["run_dir"],
        plugins=[RunCheckpointIO()],
    )
    end_together(trainer)
    interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(interval, int) and interval % accumulated:
        raise UserError(
            f"trainer.val_check_interval={interval} counts batches and must be a multiple of "
            f"trainer.accumulate_grad_batches={accumulated}: weights are validated, and saved, between whole steps"
        )
    node = config["data"]
    options = {key: node[key] for key in ("examples", "resident", "flip", "dequantise") if key in node}
    augmentation = make(config["augmentation"]) if config.get("augmentation") else None
    batches = DataModule(data, node["batch_size"], seed, augmentation=augmentation, **options)
    return Parts(module, batches, trainer)


def relocated(config: Config, run_dir: str) -> dict[str, Any]:
    """The configuration with the run's directory replaced wherever it was interpolated."""
    old = config["run_dir"]

    def moved(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: moved(value) for key, value in node.items()}
        if isinstance(node, list):
            return [moved(value) for value in node]
        return run_dir if node == old else node

    return {key: moved(value) for key, value in config.items()}


def newest_checkpoint(run_dir: RunDir) -> Path | None:
    """The whole checkpoint with the largest step; damaged ones are reported and passed over.

    Raises:
        BadFileError: there are checkpoints, but none is whole.
    """
    return checkpoints.newest_checkpoint(run_dir, _report)


@rank_zero_only
def _report(message: str) -> None:
    print(f"scorefield: {message}", file=sys.stderr, flush=True)


def require_fit(path: Path, parts: Parts) -> None:
    """Refuse a checkpoint that was saved from another model than the run's."""
    content = checkpoints.read_checkpoint(path)
    checkpoints.require_fit(content["state_dict"], parts.module.state_dict(), path)
    if parts.ema is not None:
        checkpoints.require_fit(averaged_state(content) or {}, parts.module.model.state_dict(), path)


def load_weights(model: ScoreModel, run_dir: RunDir, weights: Weights) -> str:
    """Load a run's newest weights into its model; returns which ones they are.

    ``"ema"`` falls back to ``"raw"`` only where the run keeps no average.
    """
    path = newest_checkpoint(run_dir)
    if path is None:
        raise UserError(f"{run_dir.path} has no checkpoint yet; run `scorefield resume {run_dir.path}` to make one")
    content = checkpoints.read_checkpoint(path)
    average = averaged_state(content)
    if weights == "ema" and average is not None:
        _load(model, average, path)
        return "ema"
    prefix = "model."
    _load(model, {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}, path)
    return "raw"


def _load(model: ScoreModel, state: Mapping[str, Tensor], path: Path) -> None:
    checkpoints.require_fit(state, model.state_dict(), path)
    model.load_state_dict(state)


def load_run(run_dir: str | Path, weights: Weights = "ema") -> ScoreModel:
    """The model of a run with its newest weights, ready to sample, evaluate or differentiate.

    Args:
        run_dir: the run's directory.
        weights: ``"ema"`` for the averaged weights (raw ones where the run keeps no average), ``"raw"`` for the others.

    Raises:
        UserError: the directory is not a run, or has no checkpoint.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights!r} must be 'ema' or 'raw'")
    run = RunDir(Path(run_dir))
    model: ScoreModel = make(stored_config(run)["model"])
    load_weights(model, run, weights)
    return model.eval().requires_grad_(False)
