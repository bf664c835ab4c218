"""Classes and inverse problems on the 8x8 digits, with trained models: one page of numbers and pictures.

    scorefield train run_dir=outputs/digits
    scorefield train experiment=digits_cond run_dir=outputs/digits_cond
    scorefield train experiment=digits_classifier run_dir=outputs/digits_classifier
    python experiments/posterior/digits.py               writes digits.md and its pictures beside itself

Two classifiers judge, and neither has been used in training the models or in guiding them: the one whose features give
fd_digits sees whole digits, and a support vector machine on the upper halves says where these determine the class.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC
from torch import Tensor

from scorefield import load_run
from scorefield.constraints import Projection, Replacement
from scorefield.data import Digits
from scorefield.editing import Relabelling
from scorefield.grids import Karras, LogRatio, Resampled
from scorefield.kernels import Ancestral, Heun
from scorefield.metrics.features import DigitFeatures
from scorefield.metrics.fidelity import class_agreement
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance
from scorefield.models import ClassifierGuided, Guided, MomentMatching, NullSpace, PiGDM, ScoreModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import DormandPrince
from scorefield.operators import Averaging, Fourier, Inpainting, LinearOperator
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.files import write_atomically
from scorefield.records.pictures import image_grid, image_rows, save_png
from scorefield.samplers import Sampler
from scorefield.training.callbacks.samples import draw

HERE = Path(__file__).parent
DATA = Digits()
HEUN = Sampler(Karras(), 17, Heun(), denoise_last=True)
CPU = torch.device("cpu")
SURE = 0.9  # probability from which the upper half determines a class


def sampled(model: ScoreModel, sampler: Sampler, n: int, cond: dict[str, Tensor] | None) -> Tensor:
    """Samples 0 ... n - 1 of seed 0 as grey levels, (n, 1, 8, 8)."""
    parts = []
    for batch in torch.arange(n).split(250):
        some = None if cond is None else {name: value[batch] for name, value in cond.items()}
        parts.append(DATA.from_model(draw(model, sampler, DATA.shape, batch.tolist(), 0, CPU, some)[0]))
    return torch.cat(parts)


def class_table(models: dict[str, ScoreModel], n: int) -> list[str]:
    """Agreement with the asked class, worst class and distance to the training split, for every guidance."""
    extractor = DigitFeatures()
    train = FeatureStatistics.of(extractor.extract(DATA.train().x))
    reference, labels = train.divided_by(train.std), torch.arange(n) % 10
    free, told, classifier = models["digits"], models["digits_cond"], models["digits_classifier"]
    rows: dict[str, tuple[ScoreModel, bool]] = {"unconditional model": (free, False)}
    rows |= {f"classifier-free, w = {w:g}": (Guided(told, w), True) for w in (1.0, 1.25, 1.5, 2.0, 3.0)}
    rows["classifier-free, w = 2 for 0.3 ≤ σ ≤ 5"] = (Guided(told, 2.0, 0.3, 5.0), True)
    rows |= {f"classifier, w = {w:g}": (ClassifierGuided(free, classifier, w), True) for w in (1.0, 2.0, 4.0)}
    lines, baseline = [], 0.0
    for name, (model, conditional) in rows.items():
        features = extractor.extract(sampled(model, HEUN, n, {"label": labels} if conditional else None))
        distance = frechet_distance(FeatureStatistics.of(features).divided_by(train.std), reference)
        baseline = baseline or distance
        agreement = "– | –"
        if conditional:
            each = [class_agreement(extractor, features[labels == c], labels[labels == c]) for c in range(10)]
            agreement = f"{100 * class_agreement(extractor, features, labels):.1f} % | {100 * min(each):.0f} %"
        lines.append(f"| {name} | {agreement} | {distance:.3f} | {distance / baseline:.2f} |")
        print(lines[-1], flush=True)
    return lines


def determined(images: int) -> tuple[Tensor, Tensor, float]:
    """Test images whose upper half determines the class, their labels, and how often it does so rightly."""
    train, test = DATA.train(), DATA.test()
    assert train.labels is not None
    assert test.labels is not None
    upper = CalibratedClassifierCV(SVC(C=10.0, gamma="scale"), ensemble=False)
    upper.fit(train.x[:, 0, :4].flatten(1).numpy() / 16, train.labels.numpy())
    chances = torch.from_numpy(upper.predict_proba(test.x[:, 0, :4].flatten(1).numpy() / 16))
    sure = (chances.max(1).values >= SURE).nonzero()[:, 0]
    right = float((chances.argmax(1) == test.labels)[sure].double().mean())
    print(f"the upper half determines {len(sure)} of {len(test)} test images, {100 * right:.1f} % of them rightly")
    return test.x[sure[:images]], test.labels[sure[:images]], right


def solvers(model: ScoreModel, operator: LinearOperator) -> dict[str, tuple[ScoreModel, Sampler]]:
    """Ways to explain an exact observation."""
    repaint = Sampler(Resampled(LogRatio(), 10, 10), 30, Ancestral(), denoise_last=True)
    return {
        "replacement": (model, replace(HEUN, constraint=Replacement(operator))),
        "replacement, RePaint × 10": (model, replace(repaint, constraint=Replacement(operator))),
        "projection, w = 0.8": (model, replace(HEUN, constraint=Projection(operator, 0.8))),
        "null space": (NullSpace(model, operator), HEUN),
        "ΠGDM": (PiGDM(model, operator, 0.02, data_std=0.7), HEUN),
        "ΠGDM and replacement": (
            PiGDM(model, operator, 0.02, data_std=0.7),
            replace(HEUN, constraint=Replacement(operator)),
        ),
        "moment matching, 40 steps": (MomentMatching(model, operator, 0.02), replace(HEUN, steps=40)),
    }


def inpainting_table(model: ScoreModel, images: int, n: int, output: Path) -> tuple[list[str], float, int]:
    """How often a filled lower half keeps the class, how the samples spread, and how well the upper half is kept."""
    x, labels, right = determined(images)
    operator, extractor = Inpainting.rows(DATA.shape), DigitFeatures()
    y = operator.forward(DATA.observable(x)).repeat_interleave(n, 0)
    lines, hidden = [], ~operator.mask[0]
    for name, (posterior, sampler) in solvers(model, operator).items():
        made, kept = [], 0.0
        for batch in torch.arange(len(y)).split(250):
            raw, _ = draw(posterior, sampler, DATA.shape, batch.tolist(), 0, CPU, {"observed": y[batch]})
            kept = max(kept, float((operator.forward(raw) - y[batch]).abs().max()))
            made.append(DATA.from_model(raw))
        samples = torch.cat(made)
        found = extractor.logits(extractor.extract(samples)).argmax(1).unflatten(0, (len(x), n))
        agree = (found == labels[:, None]).double().mean(1)
        spread = samples.unflatten(0, (len(x), n)).double().std(1)[:, 0][:, hidden].mean()
        error = float(agree.std() / len(x) ** 0.5)
        majority = float((agree > 0.5).double().mean())
        lines.append(
            f"| {name} | {100 * float(agree.mean()):.1f} ± {100 * error:.1f} % | {100 * majority:.0f} % | "
            f"{float(spread):.2f} | {kept:.1e} |"
        )
        print(lines[-1], flush=True)
    return lines, right, len(x)


def pictures(model: ScoreModel, output: Path, columns: int = 8) -> None:
    """What is observed, samples and their deviation, and the original, for each kind of observation."""
    x = DATA.test().x[:5]
    shown = {
        "inpainting": (Inpainting.rows(DATA.shape), "replacement, RePaint × 10"),
        "pixels": (Inpainting.random(DATA.shape, 0.25), "moment matching, 40 steps"),
        "super_resolution": (Averaging(DATA.shape, 2), "ΠGDM"),
        "fourier": (Fourier.lines(DATA.shape, 4, 0.3), "moment matching, 40 steps"),
    }
    for name, (operator, how) in shown.items():
        posterior, sampler = solvers(model, operator)[how]
        y = operator.forward(DATA.observable(x))
        rows = y.repeat_interleave(columns, 0)
        raw, _ = draw(posterior, sampler, DATA.shape, list(range(len(rows))), 0, CPU, {"observed": rows})
        samples = DATA.display(DATA.from_model(raw)).unflatten(0, (len(x), columns))
        deviation = (2 * samples.float().std(1)).clamp(max=255).round().to(torch.uint8)
        observed = DATA.display(DATA.from_model(operator.adjoint(y)))
        save_png(output / f"{name}.png", image_rows([observed, *samples.unbind(1), deviation, DATA.display(x)]))


def relabelled_picture(model: ScoreModel, output: Path) -> None:
    """Test images, and their codes decoded as each of the ten classes."""
    split = DATA.test()
    assert split.labels is not None
    x = split.x[:4]
    flow = ProbabilityFlow(DormandPrince(1e-3, 1e-3))
    made = Relabelling(range(10), flow)(model, DATA.observable(x), {"label": split.labels[:4]}, StreamNoise(0))
    save_png(output / "relabel.png", image_rows([DATA.display(x), *(DATA.display(DATA.from_model(y)) for y in made)]))


def guidance_picture(model: ScoreModel, output: Path) -> None:
    """The same noise in ten classes, a row for each scale."""
    rows = []
    for scale in (0.0, 1.0, 2.0, 4.0):
        labels = torch.arange(10)
        start = model.schedule.prior_like(torch.empty(1, *DATA.shape), IndexedNoise(0, "picture", [3])).expand(
            10, -1, -1, -1
        )
        rows.append(DATA.from_model(HEUN(Guided(model, scale), start, {"label": labels}).x))
    save_png(output / "classes.png", image_grid(DATA.display(torch.cat(rows)), 10))


PAGE = """<!-- written by `python experiments/posterior/digits.py` -->
# Classes and inverse problems on the digits

Models of `experiment=digits`, `digits_cond` and `digits_classifier`; 17 steps of Heun's method unless a row says
otherwise.

## Class-conditional samples

{n} samples, class i mod 10 asked of sample i; the classifier of `fd_digits` names what it sees. The distance is to the
training split with standardised features, as in `docs/protocols.md` but at this n; the last column divides it by the
unconditional model's.

| sampled | agreement | worst class | fd_digits | ratio |
|---|---|---|---|---|
{classes}

![The same noise in ten classes at w = 0, 1, 2, 4, a row each](classes.png)

## Filling in the lower half

The first {images} test images whose upper half determines the class: a support vector machine on the upper halves of
the training split is at least {sure:.0f} % sure of it (over all such test images {right:.1f} % rightly). {each}
samples of each: agreement with the label of the original ± standard error over images; images whose majority agrees;
mean deviation of the samples in the hidden pixels, in grey levels of 0..16; and the largest deviation from the observed
part in model space.

| method | class kept | majority keeps it | spread | observed part off by |
|---|---|---|---|---|
{inpainting}

## Pictures

Rows: what is observed (as the shortest explanation, A^T y), eight samples, twice their deviation, the original.

![Lower half filled in, replacement with RePaint's grid](inpainting.png)
![A quarter of the pixels, moment matching](pixels.png)
![Means of 2x2 pixels, ΠGDM](super_resolution.png)
![Lines of the Fourier transform, moment matching](fourier.png)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs"), help="folder of the three runs")
    parser.add_argument("--samples", type=int, default=1000, help="samples of each guidance (default: 1000)")
    parser.add_argument("--images", type=int, default=60, help="pictures filled in (default: 60)")
    parser.add_argument("--each", type=int, default=8, help="samples of each of them (default: 8)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of digits.md and the pictures")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    models = {name: load_run(given.runs / name) for name in ("digits", "digits_cond", "digits_classifier")}
    pictures(models["digits"], given.output)
    guidance_picture(models["digits_cond"], given.output)
    relabelled_picture(models["digits_cond"], given.output)
    inpainting, right, images = inpainting_table(models["digits"], given.images, given.each, given.output)
    classes = class_table(models, given.samples)
    page = PAGE.format(
        n=given.samples, classes="\n".join(classes), images=images, sure=100 * SURE, right=100 * right, each=given.each,
        inpainting="\n".join(inpainting),
    )  # fmt: skip
    write_atomically(given.output / "digits.md", page.encode())
    print(given.output / "digits.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
