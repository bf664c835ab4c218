"""How things fail, and the code with which a command then ends.

A failure that a person can mend is one of the classes below: a command answers it with its message alone, no traceback.
Everything else is a fault of the program and shows its traceback.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # a typing error on the command line is answered before torch is loaded
    from torch import Tensor


class Exit(IntEnum):
    """Exit codes of every command; this is the only list of them.

    The codes from 64 up are those of BSD's sysexits.h, which schedulers know.
    """

    FINISHED = 0
    FAULT = 1  # a bug: the traceback is shown
    USER = 2  # a mistake in what was asked, or a file that is not what it should be
    NUMERICS = 70  # a number was not finite, or a solver could not go on: starting again changes nothing
    STORAGE = 74  # the disk is full or cannot be written; the last checkpoint is whole, `scorefield resume` goes on
    PREEMPTED = 75  # told to stop, saved: run the same command again
    INTERRUPTED = 130  # Ctrl-C; a run in training has saved itself, as if preempted


class UserError(Exception):
    """Something that the user asked for cannot be done; the message says what and how to mend it."""


class BadFileError(UserError, ValueError):
    """A file is not what it should be; the message names it, what was expected and what was found."""


class NumericalError(ArithmeticError):
    """A computation met nan or infinity, or could not keep its promised accuracy.

    Args:
        message: what happened, where, and what usually causes it.
        tensors: what is needed to look into it, saved beside the run's logs.
    """

    def __init__(self, message: str, **tensors: "Tensor") -> None:
        super().__init__(message)
        self.tensors: dict[str, Tensor] = {}
        self._keep(tensors)

    def _keep(self, tensors: Mapping[str, "Tensor"]) -> None:
        self.tensors |= {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def within(self, where: str, **tensors: "Tensor") -> Self:
        """The same error, once it is known in what it happened."""
        self.args = (f"{where}: {self.args[0]}",)
        self._keep(tensors)
        return self
