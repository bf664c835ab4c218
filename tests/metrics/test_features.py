import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from scorefield.data.images import Digits
from scorefield.metrics.features import DigitFeatures, InceptionFeatures, WeightsUnavailable
from scorefield.metrics.fidelity import class_agreement
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance


@pytest.fixture(scope="module")
def digits():
    return DigitFeatures()


def test_shipped_classifier_reads_the_held_out_digits(digits):
    for split in (Digits().test(), Digits().validation()):
        assert class_agreement(digits, digits.extract(split.x), split.labels) >= 0.98  # what the project promises


def test_extractor_is_frozen_whatever_holds_it(digits):
    holder = nn.Sequential(digits)
    holder.train()
    assert not digits.training
    assert not any(p.requires_grad for p in holder.parameters())


def test_features_of_an_image_do_not_depend_on_its_batch(digits):
    x = Digits().test().x[:64]
    alone = torch.cat([digits(image[None]) for image in x])
    # float32 sums over up to 1024 terms, in an order that depends on the batch
    assert torch.allclose(digits.extract(x, batch_size=10), alone, rtol=0, atol=1e-5)


def test_every_feature_is_alive(digits):
    """A feature that hardly varies would be blown up by standardisation."""
    std = FeatureStatistics.of(digits.extract(Digits().train().x)).std
    assert std.min() > 0.05 * std.max()


def test_distance_orders_corruptions(digits):
    """More noise, further away; and real digits are nearer than any of it."""
    data = Digits()
    train = FeatureStatistics.of(digits.extract(data.train().x))
    x, generator = data.train().x, torch.Generator().manual_seed(0)

    def distance(images):
        return frechet_distance(
            FeatureStatistics.of(digits.extract(images)).divided_by(train.std), train.divided_by(train.std)
        )

    noise = torch.randn(x.shape, generator=generator)
    distances = [distance(data.quantise(x.float() + 0.5 + scale * noise)) for scale in (0.0, 1.5, 3.0, 6.0)]
    assert distances[0] < 1e-8  # the training split itself
    assert distances == sorted(distances)
    assert distance(data.test().x) < distances[-1] / 5


def test_digit_features_want_levels(digits):
    with pytest.raises(ValueError, match=r"grey levels 0\.\.16"):
        digits(Digits().display(Digits().test().x[:4]))
    with pytest.raises(ValueError, match="quantise samples first"):
        digits(torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="8x8"):
        digits(torch.zeros(4, 1, 28, 28, dtype=torch.uint8))


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"weights-inception-2015-12-05-6726825d\.pth"):
        InceptionFeatures()
    with pytest.raises(WeightsUnavailable, match="elsewhere"):
        InceptionFeatures(tmp_path / "elsewhere.pth", download=True)
    with pytest.raises(WeightsUnavailable, match="train_digit_classifier"):
        DigitFeatures(tmp_path / "none.safetensors")


def test_inception_features_are_torch_fidelitys(tmp_path, monkeypatch):
    """With random weights in the published file's format: features, score logits and the name."""
    torch.set_default_dtype(torch.float32)
    layers = ["2048", "logits_unbiased"]
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patched.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        theirs = FeatureExtractorInceptionV3("theirs", layers)
    path = tmp_path / "inception.pth"
    torch.save(theirs.state_dict(), path)
    ours = InceptionFeatures(path)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features, logits = theirs(x)
    assert torch.equal(ours(x), features)
    # float32 product of 2048 terms, taken by another routine
    assert torch.allclose(ours.logits(features), logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    assert torch.equal(ours(x[:, :1]), theirs(x[:, :1].repeat(1, 3, 1, 1))[0])
    assert ours.metric == "fid"
    assert ours.protocol()["weights"] == ours.weights_hash


def test_only_inceptions_distance_is_called_fid(digits):
    assert digits.metric == "fd_digits"
