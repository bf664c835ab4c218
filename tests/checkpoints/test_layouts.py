"""The authors' files around weights drawn here: which set of weights is taken, and what is refused."""

import pickle
import sys
import types
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from scorefield.checkpoints import export, from_state, load
from scorefield.checkpoints.edm_pickle import converted
from scorefield.errors import BadFileError
from tests.checkpoints.published import CONFIGS, SCORE_SDE, changed, checkpoint, drawn

TWO_SETS = ["score_sde", "ncsnv2"]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def sample(source):
    x = torch.rand(2, 3, 8, 8)
    return x, (torch.tensor([3, 7]) if source in ("ncsn", "ncsnv2") else torch.tensor([0.3, 2.0]))


@pytest.fixture(params=CONFIGS)
def case(request, tmp_path):
    """A source, two sets of weights with its names, and a file that holds them."""
    source = request.param
    raw, ema = drawn(source, CONFIGS[source], 0), drawn(source, CONFIGS[source], 1)
    if source == "score_sde":  # frozen, so that there is no average of it
        ema["all_modules.0.W"] = raw["all_modules.0.W"]
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint(source, raw, ema), path)
    return source, raw, ema, path


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_each_set_of_weights_is_the_one_that_was_saved(case, weights):
    source, raw, ema, path = case
    taken = {"ema": ema, "raw": raw}[weights] if source in TWO_SETS else (raw if source == "ncsn" else ema)
    x, t = sample(source)
    expected = from_state(source, taken, CONFIGS[source])
    model = load(source, path, CONFIGS[source], weights)
    if source == "edm":
        out = model.net(x, t)
        torch.testing.assert_close(out, expected(x, t), rtol=0, atol=0)
        return
    index = 1 - t.double() / 9 if source != "score_sde" else model.schedule.time_at(t.double())
    score = model(x, index).score
    # The same network; labels are made of times, whose logarithm is rounded once more before phases of about 30.
    published = expected(x, t).detach()
    torch.testing.assert_close(score, published, rtol=1e-4, atol=1e-4 * float(published.abs().max()))
    assert not any(p.requires_grad for p in model.parameters())


def test_a_parallel_wrapper_changes_nothing(case):
    source, raw, _, _ = case
    x, t = sample(source)
    wrapped = {f"module.{name}": tensor for name, tensor in raw.items()}
    assert torch.equal(
        from_state(source, wrapped, CONFIGS[source])(x, t), from_state(source, raw, CONFIGS[source])(x, t)
    )


def test_any_model_comes_back_from_its_own_folder(case, tmp_path):
    """Export and load are inverse, bit for bit; the copy needs neither the authors' file nor their configuration."""
    source, _, _, path = case
    model = load(source, path, CONFIGS[source])
    again = load("scorefield", export(model, tmp_path / "own"))
    x, _ = sample(source)
    t = model.schedule.time_at(torch.tensor([0.3, 0.7], dtype=torch.float64))
    assert torch.equal(again(x, t).out, model(x, t).out)
    assert again.transform == model.transform
    assert again.parametrization == model.parametrization
    with pytest.raises(FileExistsError, match="already holds a model"):
        export(model, tmp_path / "own")


@pytest.mark.parametrize("other", CONFIGS)
def test_weights_of_another_source_are_refused_with_the_source_that_fits(case, other):
    source, raw, _, path = case
    if other == source:
        return
    with pytest.raises(BadFileError, match=rf"{other}: .*names of {source}: use source '{source}'"):
        from_state(other, raw, CONFIGS[other])
    with pytest.raises(BadFileError, match=rf"use source '{source}'|looks like one of source '{source}'"):
        load(other, path, CONFIGS[other])


def test_missing_and_misshapen_weights_are_named(case):
    source, raw, _, _ = case
    name = next(n for n, v in raw.items() if v.ndim == 4)
    with pytest.raises(BadFileError, match=rf"expected .*{name.replace('.', '[.]')}.* found none"):
        from_state(source, {n: v for n, v in raw.items() if n != name}, CONFIGS[source])
    with pytest.raises(BadFileError, match="to make a tensor of shape"):
        from_state(source, {**raw, name: torch.zeros(2, 2, 1, 1)}, CONFIGS[source])
    with pytest.raises(BadFileError, match=r"found stranger"):
        from_state(source, {**raw, "stranger": torch.zeros(1)}, CONFIGS[source])


def test_another_configuration_of_the_same_source_is_refused():
    state = drawn("score_sde", SCORE_SDE)
    for change in ({"model__nf": 16}, {"model__ch_mult": [1, 1]}, {"model__num_res_blocks": 2}, {"model__fir": False}):
        with pytest.raises(BadFileError, match=r"another network's|another configuration"):
            from_state("score_sde", state, changed(SCORE_SDE, **change))


def test_a_ladder_that_is_not_the_configurations_is_refused():
    state = {**drawn("ncsnv2", CONFIGS["ncsnv2"]), "sigmas": torch.logspace(0, -2, 10)}
    with pytest.raises(BadFileError, match=r"10 noise levels from 1 to 0\.01, expected 10 from 10 to 0\.01"):
        from_state("ncsnv2", state, CONFIGS["ncsnv2"])


def test_what_the_configuration_lacks_or_misspells_is_named():
    state = drawn("score_sde", SCORE_SDE)
    short = {**SCORE_SDE, "model": {k: v for k, v in SCORE_SDE["model"].items() if k != "nf"}}
    with pytest.raises(ValueError, match=r"config.model.nf is missing"):
        from_state("score_sde", state, short)
    with pytest.raises(ValueError, match=r"config.model.resblock_type='unet' must be one of biggan, ddpm"):
        from_state("score_sde", state, changed(SCORE_SDE, model__resblock_type="unet"))
    with pytest.raises(ValueError, match=r"its key 'config'"):
        from_state("score_sde", state, {"config": SCORE_SDE})
    with pytest.raises(ValueError, match=r"source='ddpm' must be one of ncsn"):
        from_state("ddpm", state, SCORE_SDE)


def test_damaged_files_are_refused(case):
    """Cut at any tenth, or with one byte turned: never half a model, and never another kind of error."""
    source, _, _, path = case
    whole = path.read_bytes()
    damaged = [whole[: len(whole) * k // 10] for k in range(10)]
    places = range(999, len(whole), len(whole) // 12)
    damaged += [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in places]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BadFileError):
            load(source, path, CONFIGS[source])


class Touch:
    """Runs code when it is unpickled by Python."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_file_is_run(tmp_path, save):
    for source in CONFIGS:
        path, touched = tmp_path / f"{source}.pth", tmp_path / "touched"
        save({"model": Touch(touched), "ema": Touch(touched)}, path)
        with pytest.raises(BadFileError, match=r"asks for|no checkpoint"):
            load(source, path, CONFIGS[source])
        with pytest.raises(BadFileError, match="nothing of it was run"):
            converted(path) if save is not torch.save else converted(_pickled(path, touched))
        assert not touched.exists()


def _pickled(path, touched):
    path.write_bytes(pickle.dumps({"ema": Touch(touched)}))
    return path


def test_foreign_files_are_refused_in_words(tmp_path):
    text = tmp_path / "notes.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(BadFileError, match="found 16 bytes that begin with"):
        load("score_sde", text, SCORE_SDE)
    torch.save({"epoch": 3}, text)
    with pytest.raises(
        BadFileError, match="expected a mapping with model and ema of source 'score_sde', found a mapping of"
    ):
        load("score_sde", text, SCORE_SDE)
    with pytest.raises(BadFileError, match="found a folder"):
        load("score_sde", tmp_path, SCORE_SDE)
    with pytest.raises(FileNotFoundError):
        load("score_sde", tmp_path / "absent.pth", SCORE_SDE)
    with pytest.raises(BadFileError, match=r"expected model.json"):
        load("scorefield", tmp_path)


def test_averages_that_are_too_few_are_refused(tmp_path):
    raw = drawn("score_sde", SCORE_SDE)
    content = checkpoint("score_sde", raw, raw)
    content["ema"]["shadow_params"].pop()
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(BadFileError, match=r"averages in ema.shadow_params, found"):
        load("score_sde", tmp_path / "c.pth", SCORE_SDE)


class Persistent(torch.nn.Module):
    """A module that pickles itself as EDM's do: with its source, and rebuilt by a function of theirs."""

    def __init__(self, name: str, kwargs: dict) -> None:
        super().__init__()
        self._init_kwargs, self.__name = kwargs, name

    def __reduce__(self):
        source = "raise SystemExit('the source inside of the pickle was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.__name, "state": vars(self)}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@pytest.fixture
def persistence(monkeypatch):
    """The name by which the authors' pickles ask for their own code; pickling needs it to exist."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise SystemExit("the authors' code was called")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def test_edms_pickles_are_read_without_running_their_source(tmp_path, persistence):
    config, state = CONFIGS["edm"], drawn("edm", CONFIGS["edm"])
    outer = Persistent("EDMPrecond", {k: v for k, v in config.items() if k != "preconditioning"})
    outer.model = Persistent("SongUNet", {})
    tree: dict[str, torch.nn.Module] = {"": outer.model}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        # Names such as 8x8_block0 are one part; torch forbids dots in names only.
        at = outer.model
        for i, part in enumerate(path):
            key = ".".join(path[: i + 1])
            if key not in tree:
                tree[key] = torch.nn.ModuleDict() if i == 0 and part in ("enc", "dec") else Persistent(part, {})
                at._modules[part] = tree[key]
            at = tree[key]
        at._parameters[leaf] = torch.nn.Parameter(tensor)
    outer.model._buffers["resample_filter"] = torch.ones(1, 1, 2, 2) / 4
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(ema=outer, loss_fn=None)))
    found, arguments = converted(path)
    assert {**arguments} == config
    x, t = sample("edm")
    labels = torch.tensor([1, 3])
    expected = from_state("edm", state, config)(x, t, labels)
    assert torch.equal(from_state("edm", found, arguments)(x, t, labels), expected)
    with pytest.raises(SystemExit, match="the authors' code was called"):
        converted(path, trust=True)  # only so is the file's own code reached


def test_safetensors_are_read_too(case, tmp_path):
    source, raw, _, _ = case
    save_file(raw, tmp_path / "state.safetensors")
    a, b = load(source, tmp_path / "state.safetensors", CONFIGS[source]), from_state(source, raw, CONFIGS[source])
    inner = b.net.state_dict()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in a.net.state_dict().items())
    whole = (tmp_path / "state.safetensors").read_bytes()
    (tmp_path / "state.safetensors").write_bytes(whole[:-100])
    with pytest.raises(BadFileError, match="no whole safetensors file"):
        load(source, tmp_path / "state.safetensors", CONFIGS[source])
