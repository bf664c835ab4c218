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

# What is asked of a run's evaluation alone, with what it is where nobody asked.
_OF_A_RUN: dict[str, Any] = {
    "sampler": None,
    "guidance": {},
    "likelihood": None,
    "dequantisation": None,
    "only": None,
    "n": None,
    "weights": "ema",
}
# Options of an evaluation that go to callbacks, and the argument that takes them there.
_TAKEN_AS = {
    "sampler": "sampler",
    "guidance": "guidance",
    "likelihood": "flow",
    "dequantisation": "dequantisation",
    "n": "n_final",
    "extractor": "extractor",
    "reference": "reference",
}


def main(config: DictConfig) -> None:
    """Evaluate the newest checkpoint and write a record of its own below the run's directory."""
    asked = OmegaConf.to_container(config, resolve=True)
    assert isinstance(asked, dict)
    if (asked["run_dir"] is None) == (asked["images"] is None):
        raise UserError(
            "give either run_dir=RUN_DIR or images=FOLDER_OR_FILE: whose weights, or which images, to measure"
        )
    if asked["images"] is not None:
        for key, default in _OF_A_RUN.items():
            if asked.get(key) not in (None, {}, default):
                raise UserError(
                    f"{key} is about the weights of a run, and images={asked['images']} has none; leave it away"
                )
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
    wanted = _wanted(stored["callbacks"], asked["only"])
    for name in _TAKEN_AS:
        if (asked.get(name) or None) is not None and not any(node and name in _takes(node) for node in wanted.values()):
            measured = ", ".join(key for key, node in wanted.items() if node) or "nothing"
            raise UserError(f"{name} was given, and nothing that is measured here takes it: {measured}; leave it away")
    config["callbacks"] = {
        name: None if node is None else _adapted(node, asked) for name, node in wanted.items()
    } | asked.get("callbacks", {})
    return config


def _wanted(callbacks: Config, only: list[str] | None) -> Config:
    """The callbacks that were asked for, by name; all where none was."""
    if only is None:
        return callbacks
    if not only:
        raise UserError("only=[] measures nothing; name callbacks of the run, or leave it away for all of them")
    known = sorted(name for name, node in callbacks.items() if node is not None)
    for name in only:
        if name not in known:
            raise UserError(f"only={name} is no callback of this run, which has {', '.join(known)}")
    return {name: callbacks[name] for name in only}


def _takes(node: Config) -> set[str]:
    """The options that a callback takes."""
    drawn = "sampler" in node
    takes = {
        "sampler": drawn,
        "guidance": drawn,
        "likelihood": "flow" in node,
        "dequantisation": "flow" in node or "bound" in node,
        "n": drawn and "n_final" in node,
        "extractor": "extractor" in node,
        "reference": "extractor" in node,
    }
    return {name for name, does in takes.items() if does}


def _adapted(node: Config, asked: Config) -> dict[str, Any]:
    """A callback's configuration with another sampler, solver, seed or number of samples, where it has one."""
    given = {name for name in _TAKEN_AS if (asked.get(name) or None) is not None}
    new = {**node, **{_TAKEN_AS[name]: asked[name] for name in given & _takes(node)}}
    if "seed" in new:
        new["seed"] = asked["seed"]
    return new


if __name__ == "__main__":
    run_app("evaluate", main)
