"""Training randomness is a function of (seed, purpose, rank, batch number), and of nothing else."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from scorefield.cli.runs import build
from scorefield.data import Affine, Digits, Mixture, Split
from scorefield.training.datamodule import DataModule, TrainingStream, shard
from tests.training.tiny import checkpoint, differences, digits, fit, plane

SPLIT = Split(torch.arange(46.0).reshape(23, 2))


def stream(rank=0, world_size=1, start=0, seed=3, batch_size=12) -> TrainingStream:
    return TrainingStream(Mixture.ring(), SPLIT, batch_size, seed, rank, world_size, start)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_the_batches_of_one_process(world_size):
    alone = stream()
    ranks = [stream(rank, world_size) for rank in range(world_size)]
    for number in range(9):  # crosses the ends of four epochs
        shares = [rank.indices(number) for rank in ranks]
        assert {len(share) for share in shares} == {12 // world_size}
        assert torch.equal(torch.cat(shares), alone.indices(number))


def test_every_example_is_seen_once_in_each_pass():
    seen = torch.cat([stream().indices(number) for number in range(23)])  # 12 passes
    passes = seen.reshape(12, 23)
    assert torch.equal(passes.sort(1).values, torch.arange(23).expand(12, 23))
    assert len({tuple(row.tolist()) for row in passes}) == 12


def test_a_batch_depends_on_its_number_alone():
    whole = iter(stream())
    batches = [next(whole) for _ in range(7)]
    for number in (5, 0, 6, 2):
        assert differences(next(iter(stream(start=number))), batches[number]) == []
    assert not torch.equal(next(iter(stream(seed=4)))["index"], batches[0]["index"])


def test_dequantisation_differs_between_processes_batches_and_seeds():
    data = Digits()
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))

    def draw(seed=0, rank=0, number=0):
        return TrainingStream(data, split, 4, seed, rank, 2).batch(number)["x"]

    draws = [draw(), draw(seed=1), draw(rank=1), draw(number=1)]
    assert all(not torch.isclose(a, b).any() for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(draw(), draws[0])


def test_half_of_the_images_are_mirrored():
    """Left to right alone, each as one, with coins of their own for each process, batch and seed."""
    data = Digits()
    split = Split(torch.randint(0, 17, (400, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))

    def draw(flip, seed=0, rank=0, number=0):
        return TrainingStream(data, split, 400, seed, rank, 2, flip=flip).batch(number)

    coins = []
    for where in ({}, {"seed": 1}, {"rank": 1}, {"number": 1}):
        plain, flipped = draw(False, **where), draw(True, **where)
        assert torch.equal(plain["index"], flipped["index"])
        mirrored = (flipped["x"] == plain["x"].flip(3)).flatten(1).all(1)
        assert (mirrored ^ (flipped["x"] == plain["x"]).flatten(1).all(1)).all()
        assert 70 < int(mirrored.sum()) < 130  # of 200: four deviations of a fair coin
        coins.append(mirrored)
    assert not any(torch.equal(a, b) for i, a in enumerate(coins) for b in coins[:i])


def test_levels_may_be_trained_on_as_they_are():
    """Without the spreading an image of EDM's transform is k / 127.5 - 1, which is what its networks saw."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    data = Digits()
    data.transform, data.levels = Affine(128.0, 127.5), 256
    batch = TrainingStream(data, Split(levels), 4, 0, dequantise=False).batch(0)
    assert torch.allclose(batch["x"], levels[batch["index"]] / 127.5 - 1, rtol=0, atol=1e-6)  # of float32


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"flip": True}, r"flip=True mirrors images, but examples of .* have shape \[2\]"),
        ({"dequantise": False}, r"dequantise=False is about grey levels, and .* holds continuous data"),
    ],
)
def test_what_is_about_images_is_refused_elsewhere(option, message):
    with pytest.raises(ValueError, match=message):
        DataModule(Mixture.ring(), 8, **option)


def test_the_options_reach_the_batches(tmp_path):
    """From the configuration to what a step sees."""
    seen = []

    class Watcher(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch)

    parts = fit(digits(tmp_path, "data.flip=true", "data.dequantise=false"), None, Watcher())
    images = parts.data.train_split.x[seen[0]["index"]]
    levels = parts.data.data.from_model(seen[0]["x"])
    straight, mirrored = ((levels == images.flip(3) if turned else levels == images) for turned in (False, True))
    assert (straight.flatten(1).all(1) | mirrored.flatten(1).all(1)).all()
    assert not straight.all()
    middles = parts.data.data.transform.inverse(seen[0]["x"])
    assert torch.allclose(middles - middles.floor(), torch.tensor(0.5), rtol=0, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size=12 counts all processes"):
        stream(world_size=5)


@pytest.mark.parametrize(("n", "world_size", "batch_size"), [(10, 1, 3), (10, 3, 2), (2, 4, 5), (0, 2, 3)])
def test_evaluation_shares_cover_each_index_once(n, world_size, batch_size):
    shares = [shard(n, rank, world_size, batch_size) for rank in range(world_size)]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(n))
    assert all(len(batch) <= batch_size for share in shares for batch in share)


@pytest.fixture
def training_step(tmp_path):
    """The times and losses of one training step, with everything else fixed."""
    module = build(digits(tmp_path, "++net.dropout=0.5")).module
    torch.manual_seed(0)
    for parameter in module.parameters():  # a fresh network answers 0 whatever its layers drop
        parameter.data.normal_(std=0.1)
    batch = {"x": torch.randn(6, 1, 8, 8), "index": torch.arange(6)}

    def step(seed=0, rank=0, number=0, disturbance=0):
        torch.manual_seed(disturbance)
        module.seed = seed
        module._trainer = SimpleNamespace(global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=number))
        module.on_train_batch_start(batch, number)
        out = module.training_step(batch, number)
        return out["t"], out["per_sample"]

    return step


def test_steps_draw_from_their_own_streams(training_step):
    times, losses = training_step()
    for other in ({"seed": 1}, {"rank": 1}, {"number": 1}):
        t, loss = training_step(**other)
        assert not torch.isclose(t, times).any()
        assert not torch.isclose(loss, losses).any()


def test_steps_ignore_the_global_generator(training_step):
    assert differences(training_step(), training_step(disturbance=99)) == []


def test_dropout_is_drawn_anew_in_every_step(tmp_path):
    """With the objective's stream held fixed, what is left of the difference between two steps is dropout."""
    module = build(digits(tmp_path, "++net.dropout=0.5")).module
    for parameter in module.parameters():
        parameter.data.normal_(std=0.1)
    x, t = torch.randn(6, 1, 8, 8), torch.full((6,), 0.5, dtype=torch.float64)

    def answer(rank, number):
        module._trainer = SimpleNamespace(global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=number))
        module.on_train_batch_start({}, number)
        return module.model(x, t).out

    first = answer(0, 0)
    assert torch.equal(answer(0, 0), first)
    assert not torch.equal(answer(0, 1), first)
    assert not torch.equal(answer(1, 0), first)


EVALUATIONS = {
    "none at all": ["trainer.limit_val_batches=0"],
    "more often": ["trainer.val_check_interval=1"],
    "every second": ["callbacks.likelihood.every=2", "callbacks.samples.every=1"],
    "in other batches": ["callbacks.likelihood.batch_size=5", "callbacks.likelihood.n=11"],
    "another evaluation seed": ["callbacks.likelihood.seed=7", "callbacks.samples.every=1", "callbacks.samples.seed=7"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("trained")
    fit(digits(path, "++net.dropout=0.2", "callbacks.quality=null"))
    return checkpoint(path)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_evaluation_does_not_touch_training(tmp_path, trained, evaluation):
    fit(digits(tmp_path, "++net.dropout=0.2", "callbacks.quality=null", *EVALUATIONS[evaluation]))
    other = checkpoint(tmp_path)
    keys = ("state_dict", "ema", "optimizer_states")
    assert [d for key in keys for d in differences(trained[key], other[key], key)] == []


def test_another_seed_is_another_run(tmp_path):
    fit(plane(tmp_path / "a", "steps=2"))
    fit(plane(tmp_path / "b", "steps=2", "seed=1"))
    assert differences(checkpoint(tmp_path / "a")["state_dict"], checkpoint(tmp_path / "b")["state_dict"]) != []


def test_training_on_part_of_the_examples():
    assert len(DataModule(Mixture.ring(), 8, examples=32).train_split) == 32


def test_a_split_that_stays_on_the_host_is_moved_batch_by_batch(tmp_path, monkeypatch):
    """The same training either way; what moves is the whole split once, or a batch at a time, as it is stored."""
    moved, to = [], Split.to
    monkeypatch.setattr(
        Split, "to", lambda split, device: moved.append((len(split), split.x.dtype)) or to(split, device)
    )
    fit(digits(tmp_path / "a", "callbacks.quality=null", "callbacks.likelihood=null", "steps=3"))
    resident, moved = moved, []
    fit(
        digits(tmp_path / "b", "callbacks.quality=null", "callbacks.likelihood=null", "steps=3", "+data.resident=false")
    )
    assert max(resident)[0] > 1000
    assert {n for n, _ in moved} == {16}
    assert {dtype for _, dtype in moved} == {torch.uint8}
    one, other = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert differences(one["state_dict"], other["state_dict"]) == []
