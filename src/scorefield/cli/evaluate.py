"""scorefield evaluate: measure the weights of a run, with other samplers and solvers if asked, or images."""

import time
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from scorefield.cli import images
from scorefield.cli.app import refuse, run_app
from scorefield.cli.runs import (
    Config,
    UserError,
    build,
    fingerprint,
    newest_checkpoint,
    relocated,
    require_fit,
    stored_config,
)
from scorefield.cli.train import record, summary
from scorefield.records.files import write_atomically
from scorefield.records.report import write_report
from scorefield.records.rundir import RunDir


def main(config: DictConfig) -> None:
    """Evaluate the newest checkpoint and write a record of its own below the run's directory."""
    asked = OmegaConf.to_container(config, resolve=True)
    assert isinstance(asked, dict)
    if (asked["run_dir"] is None) == (asked["images"] is None):
        raise UserError(
            "give either run_dir=RUN_DIR or images=FOLDER_OR_FILE: whose weights, or which images, to measure"
        )
    if asked["images"] is not None:
        images.main({str(key): value for key, value in asked.items()})
        return
    run = RunDir(Path(asked["run_dir"]))
    stored = stored_config(run)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run.path} has no checkpoint yet; `scorefield resume {run.path}` makes one")
    settings = evaluation_config(stored, {str(key): value for key, value in asked.items()})
    refuse(settings, "evaluation", f"this evaluation of {run.path}")
    out = RunDir(run.path / "evaluations" / f"{fingerprint(settings)}-seed{settings['seed']}")
    parts = build(relocated(settings, str(out.path)))
    require_fit(checkpoint, parts)
    trainer = parts.trainer
    if trainer.is_global_zero:
        out.create()
        write_atomically(out.config, yaml.safe_dump(settings, sort_keys=False).encode())
        out.metrics.unlink(missing_ok=True)  # the same evaluation again starts its journal anew
    start = time.monotonic()
    trainer.test(parts.module, parts.data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        result = record(settings, parts, time.monotonic() - start)
        result.write(out.result)
        write_report(out)
        print(f"{summary(result)}\nreport: {out.report}")


def evaluation_config(stored: Config, asked: Config) -> dict[str, Any]:
    """The run's configuration with what was asked for put in its place."""
    config = {**stored, "trainer": asked["trainer"], "logger": {"journal": stored["logger"]["journal"]}}
    if asked["weights"] not in ("ema", "raw"):
        raise UserError(f"weights={asked['weights']} must be ema or raw")
    if asked["weights"] == "raw":
        config["ema"] = None
    config["seed"] = asked["seed"]
    config["guidance"] = asked.get("guidance") or stored.get("guidance")
    config["callbacks"] = {
        name: None if node is None else _adapted(node, asked)
        for name, node in _wanted(stored["callbacks"], asked["only"]).items()
    } | asked.get("callbacks", {})
    return config


def _wanted(callbacks: Config, only: list[str] | None) -> Config:
    """The callbacks that were asked for, by name; all where none was."""
    if only is None:
        return callbacks
    known = sorted(name for name, node in callbacks.items() if node is not None)
    for name in only:
        if name not in known:
            raise UserError(f"only={name} is no callback of this run, which has {', '.join(known)}")
    return {name: callbacks[name] for name in only}


def _adapted(node: Config, asked: Config) -> dict[str, Any]:
    """A callback's configuration with another sampler, solver, seed or number of samples, where it has one."""
    new = dict(node)
    drawn = "sampler" in node
    belongs = {
        "sampler": drawn,
        "guidance": drawn,
        "flow": "flow" in node,
        "dequantisation": "flow" in node or "bound" in node,
        "n_final": drawn and "n_final" in node,
        "extractor": "extractor" in node,
        "reference": "extractor" in node,
    }
    for key, name in {
        "sampler": "sampler",
        "guidance": "guidance",
        "flow": "likelihood",
        "dequantisation": "dequantisation",
        "n_final": "n",
        "extractor": "extractor",
        "reference": "reference",
    }.items():
        value = asked.get(name) or None
        if value is not None and belongs[key]:
            new[key] = value
    if "seed" in new:
        new["seed"] = asked["seed"]
    return new


if __name__ == "__main__":
    run_app("evaluate", main)
