"""What every source has in common: a network that is called as the authors call theirs."""

from collections.abc import Sequence

from torch import Tensor, nn

from scorefield.tensors import per_sample


class AsPublished(nn.Module):
    """The authors' function around a network of ours: their scale of the input, their label, their scale of the output.

    Our networks know neither the scale of the data nor the noise levels; the authors' do.

    Args:
        net: our network.
        centre: the input lies in [0, 1] and the network sees 2 x - 1.
        log_label: the network is told the logarithm of the time input.
        divide: the output is divided by the noise level.
        sigmas: the noise levels that the time input indexes, where it is not the noise level itself.
        labels: which of class_labels and augment_labels the network takes; others are not looked at, as by the authors.
    """

    sigmas: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        centre: bool = False,
        log_label: bool = False,
        divide: bool = False,
        sigmas: Tensor | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.centre = centre
        self.log_label = log_label
        self.divide = divide
        self.labels = tuple(labels)
        dtype = next(net.parameters()).dtype
        self.register_buffer("sigmas", None if sigmas is None else sigmas.to(dtype), persistent=False)

    def forward(
        self,
        x: Tensor,
        time_input: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), the authors' time input (B,), classes and augmentations or None -> like x."""
        labels = {
            name: value
            for name, value in (("class_labels", class_labels), ("augment_labels", augment_labels))
            if value is not None and name in self.labels
        }
        label = time_input.log() if self.log_label else time_input
        out: Tensor = self.net(2 * x - 1 if self.centre else x, label, **labels)
        if self.divide:
            sigma = time_input if self.sigmas is None else self.sigmas[time_input.long()]
            out = out / per_sample(sigma.to(out.dtype), out)
        return out
