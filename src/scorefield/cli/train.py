"""scorefield train: train a model, evaluate it, write its record and its report."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from scorefield.cli.app import run_app
from scorefield.cli.runs import (
    Config,
    Parts,
    UserError,
    build,
    fingerprint,
    newest_checkpoint,
    require_fit,
    resolved,
    stored_config,
    unlike,
)
from scorefield.errors import Exit
from scorefield.records.files import write_atomically
from scorefield.records.report import write_report
from scorefield.records.result import Measurement, Result, git_state, versions
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks import Evaluator, Stopwatch
from scorefield.training.loggers import WandbLogger


def main(config: DictConfig) -> float | None:
    """Start a run, or go on with the one that its directory holds; returns its `objective`."""
    values = resolved(config)
    run_dir = RunDir(Path(values["run_dir"]))
    if values["fresh"]:
        set_aside(run_dir)
    if run_dir.config.exists() and _named(stored := stored_config(run_dir)) != _named(values):
        raise UserError(
            f"{run_dir.path} holds a run with another configuration ({unlike(values, stored)}); give another run_dir, "
            "or fresh=true to set it aside"
        )
    if run_dir.result.exists():
        finished(run_dir)
        _say("fresh=true sets it aside and starts over")
    else:
        execute(values, run_dir)
    return objective(values, run_dir)


@rank_zero_only
def objective(config: Config, run_dir: RunDir) -> float | None:
    """The value of ``objective_metric``, what a search over settings is told of a run; None where nothing is asked."""
    name = config.get("objective_metric")
    return Result.read(run_dir.result).value(name) if name is not None and run_dir.result.exists() else None


@rank_zero_only
def finished(run_dir: RunDir) -> None:
    """Say that a run has ended, and write its report where it was stopped before it could."""
    if not run_dir.report.exists():
        write_report(run_dir)
    print(f"this run is finished: {run_dir.report}", flush=True)


def _named(config: Config) -> tuple[str, int]:
    """What tells one run from another."""
    return fingerprint(config), config["seed"]


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


@rank_zero_only
def set_aside(run_dir: RunDir) -> None:
    """Rename a run's directory to the first free ``<name>.old<k>``; nothing is deleted."""
    if run_dir.path.exists():
        k = 1
        while (target := run_dir.path.with_name(f"{run_dir.path.name}.old{k}")).exists():
            k += 1
        run_dir.path.rename(target)


def execute(config: dict[str, Any], run_dir: RunDir) -> None:
    """Train from the newest checkpoint, or from the start, to the end; then evaluate and write the record."""
    parts = build(config)
    trainer = parts.trainer
    if trainer.is_global_zero:
        run_dir.create()
        write_atomically(run_dir.config, yaml.safe_dump({**config, "fresh": False}, sort_keys=False).encode())
    checkpoint = newest_checkpoint(run_dir)
    if checkpoint is not None:
        require_fit(checkpoint, parts)
    _say(f"{config['name']} -> {run_dir.path}" + (f", resuming {checkpoint.name}" if checkpoint else ""))
    trainer.fit(parts.module, parts.data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        sys.exit(Exit.INTERRUPTED)
    start = time.monotonic()
    trainer.test(parts.module, parts.data, verbose=False)
    if trainer.is_global_zero:
        result = record(config, parts, time.monotonic() - start)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            result.write(run_dir.result)
        write_report(run_dir)
        finish_wandb(trainer, result)
        _say(summary(result) + f"\nreport: {run_dir.report}")


def record(config: dict[str, Any], parts: Parts, evaluation_seconds: float) -> Result:
    """The run's final record."""
    trainer = parts.trainer
    watch = next(c for c in trainer.callbacks if isinstance(c, Stopwatch))  # type: ignore[attr-defined]
    steps = parts.module.steps_done
    cost = {
        "train_seconds": round(watch.seconds("train"), 2),
        "validation_seconds": round(watch.seconds("validation"), 2),
        "evaluation_seconds": round(evaluation_seconds, 2),
        "steps": steps,
        "images": steps * trainer.accumulate_grad_batches * parts.data.batch_size,
        "parameters": sum(p.numel() for p in parts.module.model.parameters()),
        "processes": trainer.world_size,
    }
    return Result(
        experiment=config["name"],
        seed=config["seed"],
        config_hash=fingerprint(config),
        metrics=final_metrics(trainer),
        cost=cost,
        versions=versions(),
        git=git_state(),
        command=shlex.join(["scorefield", Path(sys.argv[0]).stem, *sys.argv[1:]]),
    )


def final_metrics(trainer: pl.Trainer) -> dict[str, Measurement]:
    """What the evaluators measured at the end."""
    evaluators = [c for c in trainer.callbacks if isinstance(c, Evaluator)]  # type: ignore[attr-defined]
    return {name: m for evaluator in evaluators for name, m in evaluator.metrics.items()}


def finish_wandb(trainer: pl.Trainer, result: Result) -> None:
    """Close the mirror with the final numbers."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.finish({name: m.value for name, m in result.metrics.items()})


def summary(result: Result) -> str:
    """One line per metric."""
    lines = []
    for name, m in result.metrics.items():
        floor = f"  ({m.value / m.protocol['floor']:.3f} of the floor)" if m.protocol.get("floor") else ""
        lines.append(f"{name:<16} {m.value:.4f}{floor}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_app("train", main)
