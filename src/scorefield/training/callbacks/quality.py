"""How good the samples are: distances to the real data in feature space, and whether they are memorised."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from scorefield.data import Split
from scorefield.metrics.features import FeatureExtractor, WeightsUnavailable, file_hash
from scorefield.metrics.fidelity import class_agreement, fidelity, kernel_distance
from scorefield.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from scorefield.metrics.reference import Reference
from scorefield.metrics.two_sample import nearest_distances
from scorefield.records.result import Measurement
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.callbacks.samples import AnySampler, Guidance, draw, guided
from scorefield.training.datamodule import shard


def gather(values: Tensor, indices: list[int], n: int) -> Tensor:
    """Rows computed by all processes, in the order of their indices below n; each process holds rows ``indices``."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[tuple[Tensor, list[int]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (values.cpu(), indices))
    gathered = torch.empty(n, *values.shape[1:], dtype=values.dtype)
    for rows, places in (part for part in parts if part is not None):
        gathered[torch.tensor(places, dtype=torch.long)] = rows
    return gathered


def told(guidance: Guidance) -> str:
    """What a record says of a guidance: its name and its settings."""
    kind, settings = getattr(guidance, "func", guidance), getattr(guidance, "keywords", {})
    words = (
        f"{key}={value if isinstance(value, int | float) else type(value).__name__}" for key, value in settings.items()
    )
    return f"{getattr(kind, '__name__', kind)}({', '.join(words)})"


class SampleQuality(Evaluator):
    """Fréchet distance of samples to the training split, during training and at the end.

    Sample i depends on (seed, i) alone and each process draws its share, so the number does not change with the batch
    size or the number of processes. Recorded beside it is its ``floor``: the distance of the test split to the
    training split with the same features.

    Args:
        extractor: makes the feature extractor; called once, when first needed.
        sampler: how samples are drawn.
        n: number of samples at validations.
        n_final: number of samples at the end.
        batch_size: samples drawn at once; changes the speed only.
        seed: the evaluation's seed.
        standardise: divide each feature by its deviation on the training split.
        memorisation: at the end, also compare distances to the nearest training example with those of the test split.
        optional: without the extractor's weights, warn and go on instead of raising.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
        guidance: makes the guided model of the model; None samples from the model itself.
        reference: file of `scorefield stats` whose images stand for the training split in all but ``memorisation``;
            with moments alone, kernel distance, precision and recall are left out.
    """

    def __init__(
        self,
        extractor: Callable[[], FeatureExtractor],
        sampler: AnySampler,
        n: int = 500,
        n_final: int = 2000,
        batch_size: int = 500,
        seed: int = 0,
        standardise: bool = False,
        memorisation: bool = True,
        optional: bool = False,
        every: int = 1,
        guidance: Guidance | None = None,
        reference: str | None = None,
    ) -> None:
        super().__init__(every)
        self.reference = reference
        self.guidance = guidance
        self.sampler, self.seed, self.standardise = sampler, seed, standardise
        self.n, self.n_final, self.batch_size = n, n_final, batch_size
        self.memorisation, self.optional = memorisation, optional
        self._make_extractor = extractor
        self._extractor: FeatureExtractor | None = None
        self._reference: Reference | None = None
        self._scale: Tensor | None = None
        self._floor = 0.0
        self._unavailable = False

    def _prepare(self, occasion: Occasion) -> FeatureExtractor | None:
        """The extractor and the reference statistics, made once; None where the weights are missing."""
        if self._extractor is None and not self._unavailable:
            try:
                self._extractor = self._make_extractor().to(occasion.device)
            except WeightsUnavailable as error:
                if not self.optional:
                    raise
                self._unavailable = True
                rank_zero_warn(f"the Fréchet distance is left out: {error}")
                return None
            self._reference = self._real(occasion.data.train_split)
            self._scale = self._reference.statistics.std if self.standardise else None
            test = FeatureStatistics.of(self._extractor.extract(occasion.data.test_split.x))
            ours = (self._reference.statistics, test)
            if self._scale is not None:
                ours = (ours[0].divided_by(self._scale), test.divided_by(self._scale))
            self._floor = frechet_distance(*ours)
        return self._extractor

    def _real(self, train: Split) -> Reference:
        """The features that samples are measured against."""
        assert self._extractor is not None
        if self.reference is None:
            return Reference.of(self._extractor, train.x, {})
        found = Reference.load(Path(self.reference))
        found.require(self._extractor, Path(self.reference))
        return found

    @property
    def _named(self) -> dict[str, object]:
        """What the reference is, for the record."""
        if self.reference is None:
            return {"reference": "train"}
        return {"reference": self.reference, "reference_hash": file_hash(Path(self.reference))}

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        extractor = self._prepare(occasion)
        if extractor is None and not (occasion.final and self.memorisation):
            return {}
        n = self.n_final if occasion.final else self.n
        if occasion.trainer.fast_dev_run:  # type: ignore[attr-defined]
            n = min(n, 32)
        samples, indices, nfe = self._samples(occasion, n)
        measurements = {}
        common = {"n": n, "seed": self.seed, "nfe": nfe, "sampler": repr(self.sampler)}
        if self.guidance:
            common["guidance"] = told(self.guidance)
        if extractor is not None:
            assert self._reference is not None
            metric = FrechetDistance(self._reference.statistics, self._scale).to(occasion.device)
            if len(samples):
                metric.update(extractor.extract(samples))
            protocol = extractor.protocol()
            protocol["extractor_weights"] = protocol.pop("weights")
            measurements[extractor.metric] = Measurement(
                float(metric.compute()),
                {
                    "floor": self._floor,
                    **self._named,
                    "n_reference": self._reference.statistics.n,
                    "n_floor": len(occasion.data.test_split),
                    "standardised": self.standardise,
                    **protocol,
                    **common,
                },
                "less",
            )
        if occasion.final:
            everything = gather(samples, indices, n)
            if extractor is not None:
                measurements |= self._fidelity(extractor, everything, common)
                measurements |= self._by_class(extractor, everything, occasion, common)
            if self.memorisation:
                measurements["nearest_ratio"] = self._nearest(occasion, everything, common)
        return measurements

    def _samples(self, occasion: Occasion, n: int) -> tuple[Tensor, list[int], float]:
        """This process's share of the samples as the data's own values, their indices, evaluations per sample."""
        data = occasion.data.data
        batches = shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size)
        model = guided(occasion.model, self.guidance, occasion.device)
        parts, nfe = [], 0.0
        for batch in batches:
            cond = occasion.wanted(batch, self.guidance)
            x, nfe = draw(model, self.sampler, data.shape, batch, self.seed, occasion.device, cond)
            parts.append(data.from_model(x).cpu())
        empty = data.from_model(torch.empty(0, *data.shape))
        return torch.cat(parts) if parts else empty, [i for batch in batches for i in batch], nfe

    def _fidelity(
        self, extractor: FeatureExtractor, samples: Tensor, common: dict[str, object]
    ) -> dict[str, Measurement]:
        """Kernel distance, precision, recall and Inception score in the same features."""
        assert self._reference is not None
        measured = fidelity(extractor, extractor.extract(samples), self._reference.features, self.seed)
        protocol = {"extractor": extractor.name, "extractor_weights": extractor.weights_hash, **self._named}
        return {
            f"{name}_{extractor.name}": Measurement(
                float(m.value),
                {**({} if m.spread is None else {"spread": float(m.spread)}), **protocol, **common, **m.settings},
                "less" if name == "kid" else "more",
            )
            for name, m in measured.items()
        }

    def _by_class(
        self, extractor: FeatureExtractor, samples: Tensor, occasion: Occasion, common: dict[str, object]
    ) -> dict[str, Measurement]:
        """Whether the extractor's classifier sees the classes that were asked for, and how far each is from its own."""
        cond, real = occasion.wanted(list(range(len(samples))), self.guidance), occasion.data.train_split
        if cond is None or real.labels is None or extractor.classes != occasion.data.data.classes:
            return {}
        labels, features, reference = cond["label"].cpu(), extractor.extract(samples), extractor.extract(real.x)
        by_class: dict[str, list[float | None]] = {"by_class": [], "kid_by_class": []}
        for c in range(extractor.classes or 0):
            ours, theirs = features[labels == c], reference[real.labels.cpu() == c]
            enough = min(len(ours), len(theirs)) >= 4
            by_class["by_class"].append(class_agreement(extractor, ours, labels[labels == c]) if len(ours) else None)
            by_class["kid_by_class"].append(
                float(kernel_distance(ours, theirs, seed=self.seed).value) if enough else None
            )
        protocol = {"classifier": extractor.name, "classifier_weights": extractor.weights_hash, **by_class, **common}
        agreement = class_agreement(extractor, features, labels)
        return {f"class_agreement_{extractor.name}": Measurement(agreement, protocol)}

    def _nearest(self, occasion: Occasion, samples: Tensor, common: dict[str, object]) -> Measurement:
        """Median distance of samples to their nearest training example, over the same for the test split."""
        train = occasion.data.train_split.x.cpu()
        ours, test = (float(nearest_distances(x.cpu(), train).median()) for x in (samples, occasion.data.test_split.x))
        return Measurement(ours / test, {"samples_median": ours, "test_median": test, **common})
