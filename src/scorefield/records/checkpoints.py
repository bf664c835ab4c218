"""Reading checkpoints: without running anything in them, and never half of one.

A checkpoint is a zip archive of stored members, written by ``torch.save``. torch itself neither verifies the members'
checksums nor refuses a file because of what is missing in it; both are done here, before anything is built from it.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.archives import require_archive, require_checksums, unpickled
from scorefield.errors import BadFileError
from scorefield.records.files import write_atomically
from scorefield.records.rundir import RunDir

_LAYOUT: dict[str, type] = {
    "global_step": int,
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU: plain values and tensors.

    Raises:
        BadFileError: the file is truncated, damaged, no checkpoint of a run, or asks for code to be run.
        OSError: the file cannot be opened.
    """
    content = _load(path, mmap=False)
    require_checksums(path)
    _require_layout(content, path)
    return content


def newest_checkpoint(run_dir: RunDir, report: Callable[[str], None]) -> Path | None:
    """The whole checkpoint with the largest step stored in it, whatever its name; None where there is no checkpoint.

    Args:
        run_dir: the run's directory.
        report: told of each file that is passed over, and why.

    Raises:
        BadFileError: there are checkpoints, but none is whole.
    """
    steps: dict[Path, int] = {}
    found = sorted(run_dir.checkpoint_folder.glob("*.ckpt"))
    for path in found:
        try:
            steps[path] = _load(path, mmap=True)["global_step"]
        except BadFileError as error:
            report(f"{error}; passing over it")
    for path in sorted(steps, key=lambda path: steps[path], reverse=True):
        try:
            read_checkpoint(path)
        except BadFileError as error:
            report(f"{error}; passing over it")
        else:
            return path
    if found:
        raise BadFileError(
            f"{run_dir.checkpoint_folder}: none of its {len(found)} checkpoints is whole; put one back, or train "
            "anew with fresh=true"
        )
    return None


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values in one piece, to be read with ``torch.load(path, weights_only=True)``.

    Raises:
        OSError: with the file's name; torch's own writer reports a full disk as a ``RuntimeError``.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(path, buffer.getvalue())


def require_fit(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuse saved tensors that are not those of the model, by name or by shape.

    Raises:
        BadFileError: with the first differences.
    """
    wrong = [f"{name} is missing" for name in wanted if name not in saved]
    wrong += [f"{name} is of no use" for name in saved if name not in wanted]
    wrong += [
        f"{name} has shape {tuple(saved[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadFileError(f"{path} holds another model than its configuration says: {'; '.join(wrong[:3])}{more}")


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    """Unpickle tensors and plain values, and nothing else; with ``mmap`` tensors are not read before they are used."""
    require_archive(path)
    content = unpickled(path, mmap)
    if not isinstance(content, dict) or type(content.get("global_step")) is not int:
        raise BadFileError(f"{path} is no checkpoint of a run: it stores no global_step")
    return content


def _require_layout(content: dict[str, Any], path: Path) -> None:
    for key, kind in _LAYOUT.items():
        if not isinstance(content.get(key), kind):
            found = f"a {type(content[key]).__name__}" if key in content else "nothing"
            raise BadFileError(f"{path} is no checkpoint of a run: expected a {kind.__name__} as {key}, found {found}")
    states = [content["state_dict"]]
    if "ema" in content:
        ema = content["ema"]
        if not isinstance(ema, dict) or not isinstance(ema.get("updates"), int):
            raise BadFileError(f"{path} is no checkpoint of a run: expected updates and state_dict in ema")
        states.append(ema.get("state_dict"))
    for state in states:
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise BadFileError(f"{path} is no checkpoint of a run: a state_dict in it does not hold tensors alone")
