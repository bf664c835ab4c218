"""What the machine can do, measured: products of matrices, convolutions, copies."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from measure.lines import seconds

# (batch, channels in, channels out, side) of the 3x3 convolutions on which the published CIFAR-10 networks spend time
CONVOLUTIONS = ((4, 128, 128, 32), (4, 384, 128, 32), (4, 256, 256, 16), (4, 512, 256, 16), (4, 256, 256, 8))


@contextmanager
def whole_products() -> Iterator[None]:
    """Products and convolutions of float32 in float32: TF32, which cuDNN takes by default, is off at the start.

    What `compute.tf32` switches on inside, for the whole process, is switched back at the end.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def rate(work: float, action: Callable[[], object], device: torch.device, repeats: int = 9) -> float:
    """Work per second, the median over the repeats."""
    action()
    return work / median(seconds(action, device) for _ in range(repeats))


@torch.no_grad()
def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a square product whose factors fit the caches."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return rate(2 * n**3, lambda: a @ b, device)


@torch.no_grad()
def convolution_rates(device: torch.device) -> dict[tuple[int, int, int, int], float]:
    """Floating-point operations per second of the library's convolutions, a direct sum's count."""
    rates = {}
    for shape in CONVOLUTIONS:
        b, c, k, side = shape
        x, w = torch.randn(b, c, side, side, device=device), torch.randn(k, c, 3, 3, device=device)
        x, w = (y.contiguous(memory_format=torch.channels_last) for y in (x, w))
        rates[shape] = rate(18 * b * c * k * side**2, lambda x=x, w=w: F.conv2d(x, w, padding=1), device)  # type: ignore[misc]
    return rates


@torch.no_grad()
def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy larger than the caches."""
    a = torch.randn(64 * 2**20, device=device)
    b = torch.empty_like(a)
    return rate(2 * a.nbytes, lambda: b.copy_(a), device)


def processor() -> str:
    """The name the system gives its processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and its measured limits, in words and numbers."""
    rates = convolution_rates(device)
    known = {
        "processor": processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        known["device"] = torch.cuda.get_device_name(device)
        known["memory, GiB"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        known["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
        known["matrix rate in bfloat16, GFLOP/s"] = round(matrix_rate(device, torch.bfloat16) / 1e9, 1)
    known["matrix rate, GFLOP/s"] = round(matrix_rate(device) / 1e9, 1)
    known["copy bandwidth, GB/s"] = round(copy_bandwidth(device) / 1e9, 1)
    for (b, c, k, side), value in rates.items():
        known[f"convolution {b}x{c}x{side}x{side} to {k}, GFLOP/s"] = round(value / 1e9, 1)
    return known
