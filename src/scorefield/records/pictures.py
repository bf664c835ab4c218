"""Images as images: grids and animations whose pixels are the samples' own.

Nothing here rescales intensities. A grid that stretches each image to its own minimum and maximum hides exactly what
one looks for, washed-out contrast and residual noise; so pixels come as uint8 and leave as the same uint8. Small images
are enlarged by whole factors, each pixel becoming a square block.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.records.files import write_atomically

_CELL = 48  # pixels; images smaller than this are enlarged to at least it
_GAP = 4  # pixels between neighbours
_BETWEEN = 96  # grey level between neighbours, told apart from black and from white


def image_grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Lay out images row by row, four pixels apart, each pixel as a square of ``scale`` by ``scale``.

    Image i begins at row ``(i // columns) (H scale + 4)`` and column ``(i % columns) (W scale + 4)``.

    Args:
        images: (N, C, H, W), uint8, C = 1 or 3, N >= 1.
        columns: images per row; by default about as many as there are rows.
        scale: whole enlargement factor; by default the smallest that makes an image 48 pixels or more.

    Raises:
        ValueError: another shape, type or range; the message says which.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[0] < 1:
        raise ValueError(f"images must be (N, 1 or 3, H, W) with N >= 1, got shape {tuple(images.shape)}")
    pixels = images.detach().cpu().numpy()
    if pixels.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}; clamp, round and convert them with the data set's")
    count, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = math.ceil(_CELL / max(height, width)) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    columns = min(columns, count)
    rows = math.ceil(count / columns)

    tall, wide = height * scale + _GAP, width * scale + _GAP
    canvas = np.full((rows * tall - _GAP, columns * wide - _GAP, channels), _BETWEEN, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * tall, (i % columns) * wide
        block = image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = block
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def image_rows(columns: Sequence[Tensor], scale: int | None = None) -> Image.Image:
    """Pictures side by side, a row for each: columns of images (J, C, H, W), as `image_grid` takes them."""
    return image_grid(torch.stack(tuple(columns), 1).flatten(0, 1), len(columns), scale)


def save_png(path: Path, image: Image.Image) -> None:
    """Write a lossless PNG in one piece, the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def save_gif(path: Path, frames: Sequence[Image.Image], frame_ms: int = 80, hold_ms: int = 2000) -> None:
    """Write an endless animation that rests on its last frame.

    Grey frames keep every pixel; colour frames are reduced to 256 colours each, as the format demands. A frame equal to
    the one before it is not stored again, its time is added to it.

    Args:
        path: the file.
        frames: pictures of one size.
        frame_ms: how long each frame shows, in milliseconds; the format counts in tens.
        hold_ms: how long the last frame shows.

    Raises:
        ValueError: no frames, or frames of different sizes.
    """
    if not frames or len({frame.size for frame in frames}) != 1:
        raise ValueError(f"frames must be one or more of one size, got sizes {[frame.size for frame in frames]}")
    buffer = io.BytesIO()
    durations = [frame_ms] * (len(frames) - 1) + [hold_ms]
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0, disposal=1
    )
    write_atomically(path, buffer.getvalue())
