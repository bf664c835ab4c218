"""A run's directory: finished, resumed, refused, set aside, and read back as a model."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from scorefield import load_run
from scorefield.cli import evaluate, resume, train
from scorefield.cli.runs import UserError, fingerprint, relocated, stored_config
from scorefield.records.rundir import RunDir
from tests.training.test_resume import same_run
from tests.training.tiny import PLANE, checkpoint, differences, fit, journal, metrics, plane

ROOT = Path(__file__).parents[2]
QUICK = ["steps=4", "callbacks.likelihood=null"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scorefield.cli.main", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; laws that change it work on a copy."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("finished") / "run"
    train.execute(plane(path, *QUICK), RunDir(path))
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(run_dir: Path, *overrides: str) -> None:
    """The train command, without its process."""
    from omegaconf import OmegaConf

    train.main(OmegaConf.create(plane(run_dir, *QUICK, *overrides)))


def test_a_run_leaves_everything_in_one_directory(finished):
    run = RunDir(finished)
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "checkpoints/step-00000004.ckpt",
        "samples/final.png",
        "figures/loss_by_noise.png",
    } <= names
    record = json.loads(run.result.read_text())
    assert record["schema"] == "scorefield-result/1"
    assert {"steps", "images", "parameters", "train_seconds", "processes"} <= record["cost"].keys()
    assert (record["cost"]["steps"], record["cost"]["images"]) == (4, 64)
    assert all({"value", "weights", "step", "seconds"} <= m.keys() for m in record["metrics"].values())


def test_a_finished_run_is_not_trained_again(copy, capsys):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    again(copy)
    assert "finished" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("other", ["net.width=8", "seed=1", "optim.optimizer.lr=0.5"])
def test_a_directory_with_another_run_is_refused(copy, other):
    """By the setting that differs, and what it is in either."""
    key, value = other.split("=")
    found = (
        rf"another configuration \({re.escape(key)}: [0-9.e-]+ there, {value} here\); give another run_dir, or fresh"
    )
    with pytest.raises(UserError, match=found):
        again(copy, other)


def test_fresh_sets_a_run_aside_and_deletes_nothing(copy):
    old = (copy / "result.json").read_bytes()
    again(copy, "fresh=true", "steps=1")
    again(copy, "fresh=true", "steps=2")
    kept = sorted(p.name for p in copy.parent.iterdir())
    assert kept == ["run", "run.old1", "run.old2"]
    assert (copy.parent / "run.old1" / "result.json").read_bytes() == old
    assert json.loads((copy / "result.json").read_text())["cost"]["steps"] == 2
    assert yaml.safe_load((copy / "config.yaml").read_text())["fresh"] is False


def test_the_same_command_finishes_what_was_interrupted(tmp_path, finished):
    fit(plane(tmp_path, *QUICK))
    again(tmp_path)
    assert differences(metrics(tmp_path), metrics(finished)) == []


def test_resume_finishes_a_run_that_was_moved(tmp_path, finished, monkeypatch, capsys):
    fit(plane(tmp_path / "here", *QUICK, "callbacks.checkpoint.every=3"))
    RunDir(tmp_path / "here").checkpoint(4).unlink()
    (tmp_path / "here" / "config.yaml").write_text(yaml.safe_dump(plane(tmp_path / "here", *QUICK)))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(sys, "argv", ["scorefield resume", str(tmp_path / "there")])
    resume.main()
    assert "resuming step-00000003.ckpt" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert differences(metrics(tmp_path / "there"), metrics(finished)) == []


def test_relocating_touches_the_directory_alone():
    config = {"run_dir": "a", "x": [{"run_dir": "a", "name": "a/b"}, "c"], "n": 1}
    assert relocated(config, "z") == {"run_dir": "z", "x": [{"run_dir": "z", "name": "a/b"}, "c"], "n": 1}


def test_load_run_gives_averaged_weights_unless_asked(finished):
    saved = checkpoint(finished)
    raw = {k.removeprefix("model."): v for k, v in saved["state_dict"].items() if k.startswith("model.")}
    assert differences(raw, saved["ema"]["state_dict"]) != []
    assert differences(dict(load_run(finished).state_dict()), saved["ema"]["state_dict"]) == []
    assert differences(dict(load_run(finished, "raw").state_dict()), raw) == []
    assert not any(p.requires_grad for p in load_run(finished).parameters())
    assert not load_run(finished).training


def test_load_run_refuses_what_is_no_run(tmp_path, copy):
    with pytest.raises(UserError, match="is not a run"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="weights='best'"):
        load_run(copy, "best")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        load_run(copy)


HOSTILE = ["os.system", "subprocess.run", "builtins.eval", "scorefieldx.Run", "torch.load", "torch.hub.load"]


def test_an_evaluation_runs_the_callbacks_that_it_is_asked_for(finished):
    """And is another evaluation than that of all of them, in a directory of its own."""
    stored = stored_config(RunDir(finished))
    asked = {"trainer": stored["trainer"], "weights": "ema", "seed": 0, "n": None, "only": None}
    whole = evaluate.evaluation_config(stored, asked)
    assert whole["callbacks"].keys() == stored["callbacks"].keys()
    part = evaluate.evaluation_config(stored, {**asked, "only": ["samples"]})
    assert part["callbacks"] == {"samples": whole["callbacks"]["samples"]}
    assert fingerprint(part) != fingerprint(whole)
    with pytest.raises(UserError, match=r"only=\[\] measures nothing"):
        evaluate.evaluation_config(stored, {**asked, "only": []})
    for option in ({"n": 7}, {"likelihood": {"_target_": "x"}}, {"extractor": {"_target_": "x"}}):
        (name,) = option
        with pytest.raises(UserError, match=f"{name} was given, and nothing that is measured here takes it: samples;"):
            evaluate.evaluation_config(stored, {**asked, **option, "only": ["samples"]})
    # `likelihood` is switched off in this run
    with pytest.raises(UserError, match=r"only=likelihood is no callback of this run, which has .*samples"):
        evaluate.evaluation_config(stored, {**asked, "only": ["samples", "likelihood"]})


@pytest.mark.parametrize("target", HOSTILE)
def test_a_stored_configuration_runs_no_foreign_code(copy, tmp_path, target):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["net"]["embedding"] = {"_target_": target, "_args_": [f"touch {tmp_path / 'owned'}"]}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=target):
        load_run(copy)
    assert not (tmp_path / "owned").exists()


def test_a_stored_configuration_makes_no_python_objects(copy):
    (copy / "config.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    with pytest.raises((UserError, yaml.YAMLError)):
        stored_config(RunDir(copy))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "experiment=nonesuch"], "nonesuch"),
        (["train", "net.widht=3"], "widht"),
        (["traim"], "traim"),
    ],
)
def test_a_typing_error_is_named_without_a_traceback(tmp_path, arguments, named):
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert named in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_killed_at_any_moment_and_resumed_is_uninterrupted(tmp_path):
    """SIGKILL at a random moment of training, twice; once the same command goes on, once `resume`."""
    length = ["steps=300", "trainer.val_check_interval=20", "callbacks.checkpoint.every=7", "callbacks.log.every=2"]
    arguments = [f"++{o}" if "." in o.split("=")[0] else o for o in [*PLANE, *length]]
    path = tmp_path / "killed"
    for first, last in ((10, 100), (150, 250)):
        process = subprocess.Popen(
            command("train", *arguments, f"run_dir={path}"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        wanted = random.randint(first, last)
        while process.poll() is None and _last_step(path) < wanted:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = subprocess.run(
        command("resume", str(path)), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "resuming step-" in done.stdout
    fit(plane(tmp_path / "whole", *length))
    lines = journal(path)
    assert [line["phase"] for line in lines[-2:]] == ["final", "final"]
    assert [line for line in lines if line["phase"] != "final"] == journal(tmp_path / "whole")
    (path / "metrics.jsonl").write_bytes((tmp_path / "whole" / "metrics.jsonl").read_bytes())
    same_run(path, tmp_path / "whole")


def _last_step(path: Path) -> int:
    file = RunDir(path).metrics
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
