"""Weights & Biases is a mirror: it gets everything, keeps its id, and nothing that it does can stop a run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from scorefield.records.rundir import RunDir
from scorefield.training.loggers import JournalLogger, WandbLogger
from tests.training.tiny import fit, journal, plane


class FakeRun:
    def __init__(self, broken: str = "") -> None:
        self.rows: list[dict] = []
        self.defined: list[str] = []
        self.ended: list[int | None] = []
        self.summary = self
        self.totals: dict = {}
        self.broken = broken

    def _maybe_fail(self, what: str) -> None:
        if what == self.broken:
            raise ConnectionError("the server is silent")

    def define_metric(self, name, **_) -> None:
        self.defined.append(name)

    def log(self, row, **_) -> None:
        self._maybe_fail("log")
        self.rows.append(row)

    def update(self, values) -> None:
        self._maybe_fail("summary")
        self.totals |= values

    def finish(self, exit_code=None, **_) -> None:
        self._maybe_fail("finish")
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, which remembers how it was called."""
    fake = ModuleType("wandb")
    fake.inits, fake.run, fake.broken = [], FakeRun(), ""

    def init(**options):
        if fake.broken == "init":
            raise TimeoutError("no answer")
        fake.inits.append(options)
        return fake.run

    fake.init = init
    fake.api = SimpleNamespace(api_key=None)
    fake.Settings = lambda **kwargs: kwargs
    fake.Image = lambda path, **_: ("image", Image.open(path).size)
    fake.util = SimpleNamespace(generate_id=lambda: "generated")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return fake


def mirrored(tmp_path, *overrides):
    return fit(plane(tmp_path, "logger=wandb", "steps=8", "callbacks.samples.every=1", "tags=[a,b]", *overrides))


def test_every_value_and_picture_reaches_it(tmp_path, wandb):
    mirrored(tmp_path)
    for line in journal(tmp_path):
        named = {f"{line['phase']}/{k}": v for k, v in line.items() if k not in ("step", "images", "phase")}
        expected = {**named, "step": line["step"], "images": line["images"]}
        assert any(expected.items() <= row.items() for row in wandb.run.rows), expected
    pictures = [row for row in wandb.run.rows if isinstance(row.get("samples"), tuple)]
    assert [row["step"] for row in pictures] == [4, 8]


def test_runs_can_be_told_apart_and_compared(tmp_path, wandb):
    mirrored(tmp_path)
    (options,) = wandb.inits
    assert (options["group"], options["name"]) == ("toy_mixture", "toy_mixture-seed0")
    assert options["tags"] == ["a", "b"]
    assert options["config"]["net"]["width"] == 16
    assert type(options["config"]) is dict
    assert {"train/*", "validation/*", "final/*"} <= set(wandb.run.defined)


@pytest.mark.parametrize(
    ("key", "asked", "mode"), [(None, None, "offline"), ("k", None, "online"), ("k", "offline", "offline")]
)
def test_without_a_key_it_stays_offline(tmp_path, wandb, monkeypatch, key, asked, mode):
    wandb.api.api_key = key
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    logger = WandbLogger(str(tmp_path))
    logger.log_values("train", 1, 16, {"loss": 1.0})
    assert wandb.inits[0]["mode"] == mode


def test_a_resumed_run_keeps_its_id(tmp_path, wandb):
    mirrored(tmp_path, "steps=4")
    first = wandb.inits[-1]["id"]
    fit(plane(tmp_path, "logger=wandb", "steps=8"), RunDir(tmp_path).checkpoint(4))
    assert [options["id"] for options in wandb.inits] == [first, first]
    mirrored(tmp_path / "other")
    assert wandb.inits[-1]["id"] != first


@pytest.mark.parametrize("broken", ["init", "log"])
def test_its_failures_never_stop_a_run(tmp_path, wandb, broken):
    wandb.broken = wandb.run.broken = broken
    with pytest.warns(UserWarning, match="W&B failed to") as warned:
        mirrored(tmp_path)
    assert len([w for w in warned if "W&B" in str(w.message)]) == 1
    assert [line["step"] for line in journal(tmp_path) if line["phase"] == "validation"] == [4, 8]


@pytest.mark.parametrize("broken", ["summary", "finish"])
def test_its_end_cannot_fail_a_run(tmp_path, wandb, broken):
    wandb.run.broken = broken
    logger = WandbLogger(str(tmp_path))
    logger.log_values("final", 1, 16, {"loss": 1.0})
    with pytest.warns(UserWarning, match="W&B failed to"):
        logger.finish({"loss": 1.0})


def test_it_ends_with_the_final_numbers(tmp_path, wandb):
    logger = WandbLogger(str(tmp_path))
    logger.log_values("final", 1, 16, {"loss": 1.0})
    logger.finish({"loss": 1.0})
    assert wandb.run.totals == {"loss": 1.0}
    assert wandb.run.ended == [None]


def test_a_crash_ends_it_as_failed(tmp_path, wandb):
    import pytorch_lightning as pl

    class Crash(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == 5:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(plane(tmp_path, "logger=wandb", "steps=8"), None, Crash())
    assert wandb.run.ended == [1]


def test_the_real_package_works_offline_without_a_key(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    picture = tmp_path / "p.png"
    Image.new("L", (4, 4)).save(picture)
    logger = WandbLogger(str(tmp_path), name="a run", tags=["t"])
    logger.log_values("train", 1, 16, {"loss": 1.0})
    logger.log_picture("samples", 1, picture)
    logger.finish({"loss": 1.0})
    assert not logger._failed
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_journal_forgets_what_came_after_the_step_and_the_last_evaluation(tmp_path):
    logger = JournalLogger(str(tmp_path))
    for phase, step in (("train", 3), ("validation", 4), ("train", 6), ("final", 4)):
        logger.log_values(phase, step, 16 * step, {"loss": 1.0})
    logger.rewind(4)
    assert [(line["phase"], line["step"]) for line in journal(tmp_path)] == [("train", 3), ("validation", 4)]
