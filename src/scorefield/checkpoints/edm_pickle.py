"""Conversion of EDM's pickles into a plain state dict and a configuration, without running what is in them.

The authors distribute whole modules as pickles that carry their own source code, which unpickling compiles and runs.
Here the pickle is read by a reader that knows a short list of names and puts inert objects in the place of the modules;
their code stays text. A pickle that asks for anything else is refused, with what it asks for:

    python -m scorefield.checkpoints.edm_pickle edm-cifar10-32x32-uncond-vp.pkl converted/

writes ``converted/weights.safetensors`` and ``converted/config.json``, for ``load("edm", ...)``. Only with ``--trust``
is the file handed to Python's own unpickler, which runs whatever is in it, as the account that you are logged in with.
That is never needed for the authors' published files, and the authors' code must then be importable.
"""

import argparse
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from scorefield.errors import BadFileError

_MOST_BYTES = 16 << 30

# Arguments of the authors' constructors that say nothing about the network.
_NOT_READ = {"use_fp16", "_orig_module_src", "_orig_class_name"}


class _Module:
    """A module of torch, reduced to its attributes."""


class _Persistent:
    """A module that carries its own source: the text is kept as text, and the attributes as what they are."""

    def __init__(self, meta: Any) -> None:
        if not isinstance(meta, Mapping) or not isinstance(meta.get("state"), Mapping):
            raise BadFileError("expected a module with a state inside the pickle, found something else")
        self.class_name = str(meta.get("class_name"))
        self.__dict__.update(meta["state"])


class _Mapping(dict):
    """The authors' mapping with attributes, without the attributes."""


def _storage(content: Any) -> Any:
    """A tensor's memory, which torch has pickled as a file within the file."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _number(kind: Any, content: bytes) -> Any:
    if not isinstance(kind, np.dtype) or kind.hasobject:
        raise BadFileError("a number of a kind that is none is inside the pickle")
    return np.frombuffer(content, kind)[0].item()


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Persistent,
    ("dnnlib.util", "EasyDict"): _Mapping,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
}


class _Reader(pickle.Unpickler):
    """Unpickles tensors, plain values and inert modules."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.startswith("torch.nn.modules.") and "." not in name:
            return _Module
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise BadFileError(f"it asks for {module}.{name}, which no network of EDM is made of; nothing of it was run")


def converted(path: str | Path, trust: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration of the averaged network in an EDM pickle, for `from_state` with source ``"edm"``.

    Args:
        path: the authors' pickle.
        trust: run what is in the pickle, by Python's own unpickler.

    Raises:
        BadFileError: the file is damaged, is none of EDM's, or asks for anything that a network is not made of.
    """
    path = Path(path)
    if path.stat().st_size > _MOST_BYTES:
        raise BadFileError(f"{path} has {path.stat().st_size} bytes; a network has at most {_MOST_BYTES}")
    with path.open("rb") as file:
        read: Callable[[], Any] = (lambda: pickle.load(file)) if trust else _Reader(file).load
        try:
            content = read()
        except BadFileError as error:
            raise BadFileError(f"{path}: {error}") from error
        except Exception as error:  # damage makes the reader fail in many ways
            raise BadFileError(f"{path} is no pickle of EDM: {type(error).__name__}: {error}") from error
    net = content.get("ema") if isinstance(content, Mapping) else None
    if net is None:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise BadFileError(f"{path}: expected a mapping with the network as 'ema', found {found}")
    return dict(_tensors(net, "")), _config(net)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and those of the modules inside, by name."""
    parts = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in parts.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor.detach()
    for name, inner in parts.get("_modules", {}).items():
        if inner is not None:
            yield from _tensors(inner, f"{prefix}{name}.")


def _config(net: Any) -> dict[str, Any]:
    """The arguments that the network was made with."""
    name = getattr(net, "class_name", type(net).__name__)
    given = {**dict(vars(net).get("_init_kwargs", {}))}
    kept = {key: _plain(value) for key, value in given.items() if key not in _NOT_READ}
    return {"preconditioning": name, **kept}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pickle", type=Path, help="the authors' file")
    parser.add_argument("folder", type=Path, help="where weights.safetensors and config.json are written")
    parser.add_argument("--trust", action="store_true", help="run what is in the pickle; see above")
    asked = parser.parse_args()
    state, config = converted(asked.pickle, asked.trust)
    asked.folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    safetensors.torch.save_file(whole, asked.folder / "weights.safetensors")
    (asked.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{len(state)} tensors of a {config.get('model_type')} in {asked.folder}")


if __name__ == "__main__":
    main()
