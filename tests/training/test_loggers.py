"""Weights & Biases is a mirror: it gets everything, keeps its id, and nothing that it does can stop or slow a run."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
from PIL import Image

from scorefield.records.rundir import RunDir
from scorefield.training.loggers import JournalLogger, WandbLogger
from tests.training.tiny import fit, journal, plane

STAND_IN = Path(__file__).parent / "stand_in"


class Calls:
    """What the stand-in for the package was told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, what: str) -> list:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [content for kind, content in map(json.loads, lines) if kind == what]

    def wait_for(self, what: str) -> list:
        end = time.monotonic() + 20
        while not self.of(what) and time.monotonic() < end:
            time.sleep(0.01)
        return self.of(what)


@pytest.fixture
def wandb(tmp_path_factory, monkeypatch):
    """A stand-in for the package in the process that has it; returns what it was told."""
    calls = Calls(tmp_path_factory.mktemp("calls") / "calls.jsonl")
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("CALLS", str(calls.path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "BROKEN", "SILENT"):
        monkeypatch.delenv(name, raising=False)
    return calls


def mirrored(run_dir, *overrides, checkpoint=None, callbacks=()):
    config = plane(run_dir, "logger=wandb", "callbacks.samples.every=1", "tags=[a,b]", *overrides)
    parts = fit(config, checkpoint, *callbacks)
    next(logger for logger in parts.trainer.loggers if isinstance(logger, WandbLogger)).finish({"loss": 1.0})
    return parts


def test_every_value_and_picture_reaches_it_and_the_final_numbers(tmp_path, wandb):
    mirrored(tmp_path, "steps=8")
    rows = wandb.of("log")
    for line in journal(tmp_path):
        named = {f"{line['phase']}/{k}": v for k, v in line.items() if k not in ("step", "images", "phase")}
        expected = {**named, "step": line["step"], "images": line["images"]}
        assert any(expected.items() <= row.items() for row in rows), expected
    pictures = [row for row in rows if isinstance(row.get("samples"), list)]
    assert [(row["step"], row["images"]) for row in pictures] == [(4, 64), (8, 128)]
    assert wandb.of("summary") == [{"loss": 1.0}]
    assert wandb.of("finish") == [0]


def test_runs_can_be_told_apart_and_compared(tmp_path, wandb):
    mirrored(tmp_path, "steps=1")
    (options,) = wandb.of("init")
    assert (options["group"], options["name"]) == ("toy_mixture", "toy_mixture-seed0")
    assert options["tags"] == ["a", "b"]
    assert options["config"]["net"]["width"] == 16
    assert options["job_type"] == "train"
    axes = dict(wandb.of("define"))
    assert axes.items() >= {"train/*": "images", "validation/*": "images", "final/*": "images"}.items()


def test_the_runs_of_a_sweep_are_a_group_and_pictures_stand_over_the_images_seen(tmp_path, wandb):
    """The group is that of the place, so that a job that is resumed alone stays in it."""
    (tmp_path / "sweep.yaml").touch()
    mirrored(tmp_path / "seed-0", "steps=4")
    (options,) = wandb.of("init")
    assert options["group"] == tmp_path.name
    assert dict(wandb.of("define"))["samples"] == "images"
    mirrored(tmp_path / "seed-1", "steps=1", "logger.wandb.group=mine")
    assert wandb.of("init")[1]["group"] == "mine"


@pytest.mark.parametrize(
    ("key", "asked", "mode"), [(None, None, "offline"), ("k", None, "online"), ("k", "offline", "offline")]
)
def test_without_a_key_it_stays_offline(tmp_path, wandb, monkeypatch, key, asked, mode):
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", asked)):
        if value:
            monkeypatch.setenv(name, value)
    logger = WandbLogger(str(tmp_path))
    logger.log_values("train", 1, 16, {"loss": 1.0})
    logger.finish({})
    assert wandb.of("init")[0]["mode"] == mode


def test_a_resumed_run_keeps_its_id(tmp_path, wandb):
    mirrored(tmp_path, "steps=4")
    mirrored(tmp_path, "steps=5", checkpoint=RunDir(tmp_path).checkpoint(4))
    mirrored(tmp_path / "other", "steps=1")
    first, second, other = (options["id"] for options in wandb.of("init"))
    assert first == second
    assert first != other


@pytest.mark.parametrize("broken", ["init", "define", "log", "summary", "finish"])
def test_its_failures_never_stop_a_run_and_are_told_once(tmp_path, wandb, monkeypatch, capfd, broken):
    monkeypatch.setenv("BROKEN", broken)
    mirrored(tmp_path, "steps=8")
    assert capfd.readouterr().err.count("W&B failed to") == 1
    assert [line["step"] for line in journal(tmp_path) if line["phase"] == "validation"] == [4, 8]


@pytest.mark.parametrize("silent", ["init", "log", "summary", "finish"])
def test_its_silence_costs_a_run_no_more_than_the_timeout_at_its_end(tmp_path, wandb, monkeypatch, silent):
    """Whatever call of the package never returns: no step waits, and the end waits ``timeout`` seconds."""
    monkeypatch.setenv("SILENT", silent)
    logger = WandbLogger(str(tmp_path), timeout=0.5)
    start = time.monotonic()
    for step in range(2000):
        logger.log_values("train", step, 16 * step, {"loss": 1.0, "text": "x" * 200})
    assert time.monotonic() - start < 1.5  # 0.1 s where nothing else runs, of which the process's start is a part
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"W&B has not finished in 0.5 s; the run goes on without it"):
        logger.finish({"loss": 1.0})
    assert time.monotonic() - start < 3  # 0.5 s, and a loaded machine


def test_it_may_take_nothing_in_at_all(tmp_path, wandb):
    """A process that has been stopped, so that the pipe to it fills up."""
    logger = WandbLogger(str(tmp_path), timeout=0.5)
    logger.log_values("train", 1, 16, {"loss": 1.0})
    os.kill(logger._process.pid, 19)  # SIGSTOP
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(2, 2000):
            logger.log_values("train", step, 16 * step, {"text": "x" * 20000})
        logger.finish({"loss": 1.0})
    assert ["takes nothing in any more" in str(w.message) for w in warned] == [True]
    assert time.monotonic() - start < 3


def test_a_crash_ends_it_as_failed(tmp_path, wandb):
    class Crash(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == 5:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mirrored(tmp_path, "steps=8", callbacks=[Crash()])
    assert wandb.wait_for("finish") == [1]


def test_a_killed_run_ends_it_as_failed(tmp_path, wandb):
    code = (
        "import os\nfrom scorefield.training.loggers import WandbLogger\n"
        f"WandbLogger({str(tmp_path)!r}).log_values('train', 1, 16, {{'loss': 1.0}})\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60)
    assert wandb.wait_for("finish") == [1]
    assert wandb.of("log") == [{"train/loss": 1.0, "images": 16, "step": 1}]


def real_package(monkeypatch, url: str) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.fixture
def hanging_server():
    """Takes every connection and never answers."""
    kept = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:  # the test is over
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


@pytest.fixture
def no_network():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["hanging_server", "no_network"])
def test_the_real_package_and_a_server_that_does_not_answer(tmp_path, monkeypatch, request, capfd, server):
    """No call waits; the end waits for at most ``timeout`` seconds, and leaves no process behind."""
    real_package(monkeypatch, request.getfixturevalue(server))
    logger = WandbLogger(str(tmp_path), timeout=2)
    start = time.monotonic()
    for step in range(1000):
        logger.log_values("train", step, 16 * step, {"loss": 1.0})
    assert time.monotonic() - start < 1.5  # 0.1 s where nothing else runs, of which the process's start is a part
    start, process = time.monotonic(), logger._process
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        logger.finish({"loss": 1.0})
    assert time.monotonic() - start < 2 + 2  # and a loaded machine
    said = capfd.readouterr().err + "".join(str(w.message) for w in warned)
    assert said.count("the run goes on without it") == 1
    process.wait(timeout=10)


def test_the_real_package_works_offline_without_a_key(tmp_path, monkeypatch, capfd):
    real_package(monkeypatch, "https://api.wandb.ai")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "offline")
    picture = tmp_path / "p.png"
    Image.new("L", (4, 4)).save(picture)
    logger = WandbLogger(str(tmp_path), name="a run", tags=["t"])
    logger.log_values("train", 1, 16, {"loss": 1.0})
    logger.log_picture("samples", 1, 16, picture)
    logger.finish({"loss": 1.0})
    said = capfd.readouterr().err
    assert "W&B: offline run" in said
    assert "failed" not in said
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_journal_forgets_what_came_after_the_step_and_the_last_evaluation(tmp_path):
    logger = JournalLogger(str(tmp_path))
    for phase, step in (("train", 3), ("validation", 4), ("train", 6), ("final", 4)):
        logger.log_values(phase, step, 16 * step, {"loss": 1.0})
    logger.rewind(4)
    assert [(line["phase"], line["step"]) for line in journal(tmp_path)] == [("train", 3), ("validation", 4)]
