"""The bare network calls inside something that samples or evaluates: recorded, replayed, captured as a graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefield.models import NetworkModel

Call = tuple[Tensor, ...]  # arguments of one call of the bare network
WARM_UP = 3  # calls that are not counted: the first compiles or allocates, the second records a graph


def recorded_calls(model: NetworkModel, action: Callable[[], object]) -> list[Call]:
    """The arguments of every call of the bare network that an action makes; nothing is compiled for it."""
    calls: list[Call] = []
    handle = model.net.register_forward_pre_hook(lambda _, args: calls.append(tuple(a.detach().clone() for a in args)))
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code would pass the hook by, or keep it
            action()
    finally:
        handle.remove()
    return calls


def replayed(model: NetworkModel, calls: Sequence[Call]) -> Callable[[], None]:
    """The same calls of the bare network again, carried out as the model's compute settings say."""

    @torch.no_grad()
    def run() -> None:
        for args in calls:
            model.compute.call(model.net, *args)

    return run


def captured(action: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """An action that is free of the host, as one CUDA graph; on a CPU, where there is none, the action itself."""
    if device.type != "cuda":
        return action
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            action()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()

    def replay(_held: object = action) -> None:  # what the graph reads stays in memory with the action
        graph.replay()

    return replay
