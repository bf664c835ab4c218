"""Kernel distance, precision and recall, and Inception score by torch-fidelity, on features extracted once.

The same features feed these and the Fréchet distance, with any `FeatureExtractor`. With features other than Inception's
the numbers do not compare with published ones; their records say which features they are taken in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from scorefield.metrics.features import FeatureExtractor


@dataclass(frozen=True)
class Measured:
    """A number, its spread over subsets where it has one, and the settings it depends on."""

    value: float
    spread: float | None
    settings: Mapping[str, int]


def kernel_distance(samples: Tensor, real: Tensor, subsets: int = 100, most: int = 1000, seed: int = 0) -> Measured:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, averaged over subsets (Binkowski et al. 2018).

    The unbiased estimate may be slightly negative.

    Args:
        samples: features of samples, (N, D).
        real: features of real examples, (M, D).
        subsets: number of random subsets.
        most: largest subset; never more than half of the smaller set, so that subsets differ.
        seed: seed of the subsets.
    """
    size = min(most, min(len(samples), len(real)) // 2)
    if size < 2:
        raise ValueError(f"samples ({len(samples)}) and real ({len(real)}) need at least four examples each")
    result = kid_features_to_metric(
        samples.double(), real.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    settings = {"subsets": subsets, "subset_size": size, "n": len(samples), "n_real": len(real)}
    return Measured(result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD], settings)


def precision_recall(samples: Tensor, real: Tensor, neighbours: int = 3) -> tuple[Measured, Measured]:
    """Fraction of samples inside the real examples' manifold and vice versa (Kynkäänniemi et al. 2019, eq. 1-2).

    The manifold of a set is the union of balls around its members that reach to their k-th nearest neighbour. Both
    numbers depend on the sizes of the sets.

    Args:
        samples: features of samples, (N, D).
        real: features of real examples, (M, D).
        neighbours: k, below the size of either set.
    """
    if min(len(samples), len(real)) <= neighbours:
        raise ValueError(f"neighbours={neighbours} needs larger sets than {len(samples)} and {len(real)}")
    result = prc_features_to_metric(
        samples, real, prc_neighborhood=neighbours, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    settings = {"neighbours": neighbours, "n": len(samples), "n_real": len(real)}
    precision, recall = (Measured(result[key], None, settings) for key in (KEY_METRIC_PRECISION, KEY_METRIC_RECALL))
    return precision, recall


FEWEST = 10  # samples that all of these can be measured of: the parts of the Inception score


def inception_score(logits: Tensor, splits: int = FEWEST, seed: int = 0) -> Measured:
    """exp E KL(p(y|x) | p(y)), between 1 and the number of classes (Salimans et al. 2016, section 4).

    Args:
        logits: class logits of samples, (N, classes).
        splits: number of parts the average is taken over.
        seed: seed of the order in which the samples are parted.
    """
    if len(logits) < splits:
        raise ValueError(f"splits={splits} needs at least as many samples, got {len(logits)}")
    result = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return Measured(result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD], {"splits": splits, "n": len(logits)})


@torch.no_grad()
def fidelity(
    extractor: FeatureExtractor, features: Tensor, reference: Tensor | None, seed: int = 0
) -> dict[str, Measured]:
    """All of the above by name: ``kid``, ``precision`` and ``recall`` against a reference, ``inception_score``.

    Args:
        extractor: gives the class logits.
        features: features of samples, (N, D), on the CPU.
        reference: features of real examples, (M, D); without them the Inception score alone is measured.
        seed: of the subsets and the order.
    """
    logits = extractor.logits(features.to(next(extractor.parameters()).device)).cpu()
    found = {"inception_score": inception_score(logits, seed=seed)}
    if reference is None:
        return found
    precision, recall = precision_recall(features, reference)
    return {
        "kid": kernel_distance(features, reference, seed=seed),
        "precision": precision,
        "recall": recall,
        **found,
    }


@torch.no_grad()
def class_agreement(extractor: FeatureExtractor, features: Tensor, labels: Tensor) -> float:
    """Fraction of conditional samples that the extractor's classifier gives the class they were drawn for.

    Args:
        extractor: gives the class logits.
        features: features of the samples, (N, D).
        labels: classes they were drawn for, (N,).
    """
    device = next(extractor.parameters()).device
    return float((extractor.logits(features.to(device)).argmax(1) == labels.to(device)).double().mean())
