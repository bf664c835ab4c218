"""Lets torchvision's Python parts import where its compiled operators cannot be loaded.

torchvision ships wheels whose compiled library needs the matching CUDA build of torch. With another build of torch that
library is skipped, and ``import torchvision`` then stops at "operator torchvision::nms does not exist", although
data sets, transforms and torch-fidelity's networks need no compiled operator. Declaring the two operator *schemas* that
torchvision decorates at import time is enough. Nothing is declared where torchvision's own operators load.

Anything that imports torchvision, torchmetrics, torch_fidelity or pytorch_lightning must call
`declare_missing_operators` first; packages of scorefield that do so call it in their ``__init__``. The commands call
`declare_before_import`: some of them answer without any of these, and without torch, whose import takes seconds.
"""

import importlib.machinery
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_NEEDING = ("torchvision", "torchmetrics", "torch_fidelity", "pytorch_lightning")

_library: "torch.library.Library | None" = None  # schemas live as long as the object that declared them


def _own_operators_load() -> bool:
    """Whether torchvision's compiled library is found and accepted by this build of torch."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    for path in (Path(folder) / f"_C{suffix}" for folder in folders for suffix in suffixes):
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except OSError:
                return False
            return True
    return False


def declare_missing_operators() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` if torchvision's own operators do not load."""
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None or _own_operators_load():
        return
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)


class _BeforeImport(MetaPathFinder):
    """Finds nothing; is asked before anything is imported, and declares the operators in time."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in _NEEDING:
            sys.meta_path.remove(self)
            declare_missing_operators()


def declare_before_import() -> None:
    """Call `declare_missing_operators` when the first of the packages that need it is imported, and not before."""
    if not any(isinstance(finder, _BeforeImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeImport())
