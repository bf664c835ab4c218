"""The benchmark's arithmetic, and that each of its subjects runs."""

import importlib
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    torch.set_default_dtype(torch.float32)
    tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(tf32[0])  # compute=tensor_cores sets both for the whole process
    torch.backends.cudnn.allow_tf32 = tf32[1]
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
    assert (
        "no subject 'forwards'; there are published, memory, digits, switches, system, scale, peers, gpu" in run.stderr
    )


def test_a_subject_that_fails_leaves_the_others_measured(monkeypatch, tmp_path, capsys):
    bench, lines = importlib.import_module("bench"), part("lines")

    def one(*args):
        yield lines.Line.of("a subject", "forward", "bare calls", [(2.0, 1.0)], "s")

    def broken(*args):
        yield from one()
        raise OSError("no such library\nand more")

    monkeypatch.setattr(bench.machine, "describe", lambda device: {"threads": 1})
    monkeypatch.setattr(bench.digits, "measure", broken)
    monkeypatch.setattr(bench.system, "measure", one)
    monkeypatch.setattr(sys, "argv", ["bench.py", "digits", "system", "--save", str(tmp_path / "here")])
    assert bench.main() == 1
    said = capsys.readouterr()
    assert "failed before its end: digits  not measured: OSError: no such library\n" in said.out
    assert "and more" in said.err
    record = json.loads((tmp_path / "here.json").read_text())
    assert [line["ratio"] for line in record["lines"]] == [2.0, None, 2.0]
    monkeypatch.setattr(bench.digits, "measure", one)
    assert bench.main() == 0


def test_memory_is_that_of_a_process_of_its_own():
    found = part("memory").peak(1, ["experiment=digits", "net.channels=8"])
    assert found["before"] < found["peak"]
    assert found["seconds"] > 0


def test_what_a_step_in_a_process_of_its_own_dies_of_is_said(monkeypatch):
    """Memory that does not suffice is an error of its own kind, since a smaller batch may do."""
    memory = part("memory")
    with pytest.raises(RuntimeError, match=r"toy_mixture.*with 2 images failed: .*has no block that can be computed"):
        memory.peak(2, ["experiment=toy_mixture", "compute=low_memory"])
    done = subprocess.CompletedProcess([], 0, stdout='a warning\n{"out of memory": true}\n', stderr="")
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **more: done)
    with pytest.raises(torch.OutOfMemoryError, match="2 images does not fit cuda"):
        memory.peak(2, ["experiment=digits"], torch.device("cuda"))


def test_a_process_without_memory_says_so(monkeypatch, capsys):
    monkeypatch.setattr(part("steps"), "Work", starved(part("steps").Work, fits=2))
    part("memory").main(["cpu", "3", "experiment=toy_mixture"])
    assert json.loads(capsys.readouterr().out) == {"out of memory": True}
    part("memory").main(["cpu", "2", "experiment=toy_mixture"])
    assert json.loads(capsys.readouterr().out)["weights"] > 0


def starved(work, fits):
    """Work on a device on which a step of so many images fits, and no more."""

    class Starved(work):
        def step(self):
            if len(self.x) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            super().step()

    return Starved


def small(experiment="digits", *overrides, **more):
    """Every part of the subject for a GPU, on the CPU, with a network and batches that take seconds."""
    settings = {"repeats": 2, "training": 8, "sampling": 4, "steps": 2, "few": 2, "dozens": 3, **more}
    return part("gpu").Setup(torch.device("cpu"), experiments=(experiment,), overrides=overrides, **settings)


@pytest.fixture
def traced(monkeypatch):
    """Networks are compiled without making code, which takes half a minute each; the graphs that were."""
    compile_, graphs = torch.nn.Module.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, mode=None: compile_(net, backend=backend))
    yield graphs
    torch.compiler.reset()


@pytest.mark.parametrize(("setting", "dtype", "rate"), [("plain", "float32", 4e9), ("tensor_cores", "bfloat16", 9e9)])
def test_utilisation_is_the_share_of_the_rate_that_a_step_reaches(monkeypatch, setting, dtype, rate):
    """The operations of a perceptron, counted by its layers: 2 in x out for each, three times in a step."""
    gpu, setup = part("gpu"), small("toy_mixture")

    def matrix_rate(device, kind):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        return {torch.float32: 4e9, torch.bfloat16: 9e9}[kind]

    monkeypatch.setattr(gpu, "matrix_rate", matrix_rate)
    monkeypatch.setattr(gpu, "seconds", lambda action, device: (action(), 0.05)[1])  # of a turn of two steps
    (line,) = gpu.training(setup, "toy_mixture", setting, "subject", "what", 8)
    net = gpu.Work(setup.options("toy_mixture", "plain"), 1, setup.device).model.net
    layers = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    operations = 3 * 8 * sum(2 * layer.in_features * layer.out_features for layer in layers)
    assert (line.ours, line.other) == (0.025, pytest.approx(operations / rate))
    assert f"batch 8, 320 images/s, utilisation {100 * operations / 0.025 / rate:.3g} % of" in line.note
    assert f"{rate / 1e12:.4g} TFLOP/s in {dtype}" in line.note


def test_a_whole_sampling_run_is_scaled_by_its_network_calls(monkeypatch):
    """Two steps of Heun's method and the last denoising are 5 calls of the 35 that the default sampler takes."""
    gpu, setup = part("gpu"), small("digits", "net.channels=8")
    monkeypatch.setattr(gpu, "in_turn", lambda ours, other, repeats, device: [(0.6, 0.3)] * repeats)
    for line in gpu.sampling(setup, "digits", "plain", "subject", "what", 4):
        assert (line.ours, line.other) == (pytest.approx(0.6 * 7 / 4), pytest.approx(0.3 * 7 / 4))
        assert "5 network calls measured, scaled to the 35" in line.note
    for line in gpu.latency(setup, "digits", "plain", "subject", "what", 1):
        assert (line.ours, line.ratio) == (pytest.approx(0.6 / 7), pytest.approx(2))
    monkeypatch.setattr(gpu, "peak", lambda *args: {"peak": 80 * 2**20, "before": 20 * 2**20, "weights": 4 * 2**20})
    (line,) = gpu.memory(setup, "digits", "plain", "subject", "what", 8)
    assert (line.ours, line.other, line.unit) == (60, 20, "MiB")  # weights, gradients, two moments, average: 5 x 4


def test_samplers_find_a_score_in_networks_that_are_not_trained():
    """Langevin steps by the ratio of norms are infinite where the last layer is zero, as it starts out."""
    setup = small("ncsnpp_cifar10_ve", "net.channels=8", "net.blocks=1")
    found = part("gpu").sampling(setup, "ncsnpp_cifar10_ve", "plain", "subject", "what", 2)
    assert ["5 network calls measured, scaled to the 2001" in line.note for line in found] == [True, True]


def test_network_calls_are_recorded_of_compiled_networks_too(traced):
    """And nothing is compiled for it: on a GPU that would take minutes, and again for what is timed."""
    calls, gpu = part("calls"), part("gpu")
    model, sampler, shape = gpu.evaluated(small("digits", "net.channels=8"), "digits", "graphs")
    x = torch.randn(2, *shape)
    action = lambda: sampler(model, x)  # noqa: E731
    action()  # compiled by now
    graphs = len(traced)
    assert graphs > 0
    first = calls.recorded_calls(model, action)
    assert len(first) == sampler.nfe
    assert torch.equal(first[0][0], x * float(first[0][0].flatten()[0] / x.flatten()[0]))  # the start, scaled
    again = calls.recorded_calls(model, calls.replayed(model, first))
    action()  # is not written down any more
    assert len(first) == len(again) == sampler.nfe
    assert len(traced) == graphs
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_graph_is_captured_after_a_warm_up_and_replayed_without_the_host(monkeypatch):
    """With stand-ins for CUDA's calls, in the order in which torch's documentation wants them."""
    said = []

    @contextmanager
    def within(name):
        said.append(f"{name} begins")
        yield
        said.append(f"{name} ends")

    class Stream:
        def __init__(self, name):
            self.wait_stream = lambda other: said.append(f"{name} waits")

    class Graph:
        replay = staticmethod(lambda: said.append("replay"))

    for name, stand_in in {
        "Stream": lambda device: Stream("side"),
        "current_stream": lambda device: Stream("current"),
        "stream": lambda stream: within("side"),
        "CUDAGraph": Graph,
        "graph": lambda graph: within("capture"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    replay = part("calls").captured(lambda: said.append("call"), torch.device("cuda"))
    assert said[:2] == ["side waits", "side begins"]
    assert said[2:-5] == ["call"] * part("calls").WARM_UP
    assert said[-5:] == ["side ends", "current waits", "capture begins", "call", "capture ends"]
    said.clear()
    replay()
    assert said == ["replay"]


def test_every_setting_for_a_gpu_runs_on_a_cpu(monkeypatch, traced):
    gpu = part("gpu")
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, dtype: 1e10)
    monkeypatch.setattr(gpu, "peak", lambda *args: {"peak": 3e6, "before": 1e6, "weights": 1e5})
    tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    found = list(gpu.every_line(small("digits", "net.channels=8")))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == tf32
    assert [line.note for line in found if line.ours is None] == []
    counts = {subject: sum(line.subject == subject for line in found) for subject in {line.subject for line in found}}
    assert sorted(counts.values()) == [3, 3, 4, 4]
    assert all(line.ratio > 0.3 for line in found if "sampling" in line.subject)  # no less than the calls it makes


@pytest.mark.parametrize(("fits", "batch"), [(2, 2), (0, None)])
def test_what_does_not_fit_is_measured_with_a_smaller_batch_that_is_named(monkeypatch, fits, batch):
    gpu = part("gpu")
    monkeypatch.setattr(gpu, "Work", starved(gpu.Work, fits))
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, dtype: 1e10)
    setup = small("toy_mixture")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    (line,) = gpu.attempt(
        setup.device, "s", "w", 8, lambda n: gpu.training(setup, "toy_mixture", "tensor_cores", "s", "w", n)
    )
    if batch:
        assert line.note.startswith("batch 2, ")
        assert line.note.endswith("; out of memory at batch 4")
    else:
        assert (line.ours, line.note) == (None, "out of memory at batch 8, and at every half of it down to 1")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before  # not as it failed


def test_what_fails_is_a_line_and_costs_no_other(monkeypatch):
    gpu = part("gpu")
    for name in ("SAMPLING", "LATENCY", "MEMORY"):
        monkeypatch.setattr(gpu, name, ("plain",))
    monkeypatch.setattr(gpu, "TRAINING", ("compiled",))
    answers = {
        "training": RuntimeError("no compiler | here\nand more"),
        "latency": [part("lines").Line.missing("a", "b", "c")],
    }

    def answer(name):
        def measured(*args):
            if isinstance(answers.get(name), Exception):
                raise answers[name]
            return answers.get(name, [])

        return measured

    for name in ("training", "sampling", "latency", "memory"):
        monkeypatch.setattr(gpu, name, answer(name))
    first, second = gpu.every_line(small("digits"))
    assert (first.what, first.ours) == ("digits, compute=compiled", None)
    assert first.note == "RuntimeError: no compiler / here"
    assert second.note == "c"
    answers["training"] = TypeError("a mistake in the script")
    with pytest.raises(TypeError, match="a mistake"):
        list(gpu.every_line(small("digits")))


def test_a_line_without_numbers_says_why_wherever_it_is_shown(tmp_path):
    lines, bench = part("lines"), importlib.import_module("bench")
    line = lines.Line.missing("a subject", "forward", "out of memory at batch 1")
    lines.save(tmp_path, "here", {}, [line], "Speed")
    assert json.loads((tmp_path / "here.json").read_text())["lines"][0]["ratio"] is None
    assert "| forward | not measured | - |  |  | out of memory at batch 1 |" in (tmp_path / "here.md").read_text()
    assert bench.told(line) == "a subject: forward  not measured: out of memory at batch 1"
    assert bench.shown([line]).row_count == 1


def test_without_a_gpu_its_subject_says_what_is_missing(monkeypatch, capsys):
    bench = importlib.import_module("bench")
    monkeypatch.setattr(bench.machine, "describe", lambda device: {"processor": "this one"})
    monkeypatch.setattr("sys.argv", ["bench.py", "gpu"])
    for seen, said in ((False, "but torch sees none here."), (True, "are measured with --trainer gpu, and this is")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert bench.main() == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == "processor: this one"
        assert second.startswith("gpu: utilisation of training")
        assert said in second


def test_a_peer_that_is_not_there_is_named_and_the_others_are_measured(monkeypatch):
    peers = part("peers")
    there = lambda module, repeats: iter([module.__name__, repeats])  # noqa: E731
    monkeypatch.setattr(peers, "PEERS", {"no_such_library.nets": there, "json": there})
    missing, *rest = peers.measure(3)
    assert (missing.what, missing.ours) == ("beside no_such_library", None)
    assert missing.note == "it cannot be imported: No module named 'no_such_library'"
    assert rest == ["json", 3]


@pytest.mark.gpu
@pytest.mark.timeout(1800)  # much of it is compiling
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_subject_for_a_gpu_runs_on_one():
    """The real one, compilation and captured graphs included, on the smallest experiment."""
    gpu = part("gpu")
    device = torch.device("cuda")
    found = list(gpu.every_line(gpu.Setup(device, 2, ("digits",), (), 8, 4, 2, 2, 3)))
    assert len(found) == 3 + 2 * 2 + 2 * 2 + 3
    assert [line.note for line in found if line.ours is None] == []
    assert {line.against for line in found if "while sampling" in line.subject} == {"a CUDA graph of the network alone"}
    assert all(0 < 1 / line.ratio < 1 for line in found if line.subject.endswith("a training step"))
    assert all(line.ratio > 1 for line in found if "memory" in line.subject)


@pytest.mark.slow  # half a minute of training steps
def test_the_default_model_is_measured(monkeypatch):
    digits = part("digits")
    for name, value in {"STEPS": 12, "PAIRS": 3, "BATCH": 8, "SAMPLERS": {"euler": digits.SHORT}}.items():
        monkeypatch.setattr(digits, name, value)
    found = [line.what for line in digits.measure(2, "cpu", None)]
    assert found[:3] == ["training step through Lightning", "training step with guards", "likelihood"]
    assert found[3:] == ["sampling, the default sampler", "sampler=euler"]
