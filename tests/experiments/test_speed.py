"""The benchmark's arithmetic, and that each of its subjects runs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)
    for name in [name for name in sys.modules if name.split(".")[0] in ("measure", "bench", "cost")]:
        sys.modules.pop(name)


def part(name):
    return importlib.import_module(f"measure.{name}")


def test_a_line_holds_medians_of_what_was_taken_in_turn():
    """The ratio is the median of the ratios, which a machine that slows down half way leaves alone."""
    turns = [(2.0, 1.0), (4.0, 2.0), (20.0, 10.0), (30.0, 10.0)]
    line = part("lines").Line.of("subject", "what", "bare", turns, "s")
    assert (line.ours, line.other, line.ratio) == (12.0, 6.0, 2.0)
    assert line.low <= line.ratio <= line.high


def test_the_table_says_what_the_record_says(tmp_path):
    lines = part("lines")
    line = lines.Line.of("a subject", "forward", "bare calls", [(2.0, 1.0)], "s", "batch 4")
    lines.save(tmp_path, "here", {"threads": 1}, [line], "Speed")
    record = json.loads((tmp_path / "here.json").read_text())
    assert (record["machine"], record["lines"][0]["ratio"]) == ({"threads": 1}, 2.0)
    page = (tmp_path / "here.md").read_text()
    assert "## a subject" in page
    assert "| forward | 2 s | bare calls | 1 | 2 (2 to 2) | batch 4 |" in page


def test_the_limit_counts_operations_and_bytes():
    """A network of one convolution: 2 B K C 9 H W operations forward, three times that in a step, and the update."""

    class One:
        def operations(self):
            return 2 * 4 * 8 * 3 * 9 * 32 * 32

        def parameter_bytes(self):
            return 4 * (8 * 3 * 9)

    published = part("published")
    forward, step, likelihood = published.limits(One(), rate=1e9, bandwidth=1e6)
    assert forward == pytest.approx(2 * 4 * 8 * 3 * 9 * 32 * 32 / 1e9)
    assert likelihood == pytest.approx(2 * forward)
    assert step == pytest.approx(3 * forward + published.TRAFFIC * 4 * 8 * 3 * 9 / 1e6)


def test_operations_of_a_network_are_those_of_its_convolutions():
    """A U-Net's operations grow as its pixels do, but for what sees the noise label alone."""
    steps = part("steps")
    one, four = (
        steps.Work(["experiment=ncsnpp_cifar10_ve", "net.blocks=1", "net.channels=32", *more], 1, torch.device("cpu"))
        for more in ((), ("data.shape=[3,64,64]", "net.attention=[]"))
    )
    assert four.operations() / one.operations() == pytest.approx(4, rel=0.1)


def test_a_subject_that_does_not_exist_is_named():
    run = subprocess.run([sys.executable, SPEED / "bench.py", "forwards"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "no subject 'forwards'; there are published, memory, digits, switches, system, scale, peers" in run.stderr


def test_memory_is_that_of_a_process_of_its_own():
    found = part("memory").peak(1, ["experiment=digits", "net.channels=8"])
    assert found["before"] < found["peak"]
    assert found["seconds"] > 0


@pytest.mark.slow  # half a minute of training steps
def test_the_default_model_is_measured(monkeypatch):
    digits = part("digits")
    for name, value in {"STEPS": 12, "PAIRS": 3, "BATCH": 8, "SAMPLERS": {"euler": digits.SHORT}}.items():
        monkeypatch.setattr(digits, name, value)
    found = [line.what for line in digits.measure(2, "cpu", None)]
    assert found[:3] == ["training step through Lightning", "training step with guards", "likelihood"]
    assert found[3:] == ["sampling, the default sampler", "sampler=euler"]
