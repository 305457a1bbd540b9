"""A network that torch compiles before its first forward (`torch.compile`): faster, with the same answers up to the last digits.

Each new batch size is compiled again. A network that cannot be compiled is refused: an uncompiled run would not be the audit that was
planned and recorded.
"""

import time
from threading import Lock
from typing import Any, final

import torch

from diffleak.errors import UserError, first_lines
from diffleak.work.memory import out_of_memory
from diffleak.work.progress import say

SIZES = 64  # of batches that are compiled, at most; torch's own limit is 8, after which it runs the network as it is


@final
class Compiled:
    """Calls the compiled network; everything else is the network's own."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network, self._run = network, torch.compile(network, dynamic=False)
        self._first, self._warm = Lock(), False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's answer; raises `UserError` for a network that cannot be compiled."""
        if self._warm:
            return self._answer(*inputs, **named)
        with self._first:
            if self._warm:
                return self._answer(*inputs, **named)
            say("compiling the network, which may take minutes and is repeated for each new batch size")
            started = time.monotonic()
            answer = self._answer(*inputs, **named)
            say(f"compiled in {time.monotonic() - started:.0f} s")
            self._warm = True
            return answer

    def _answer(self, *inputs: Any, **named: Any) -> Any:
        from torch._dynamo import config as limits
        from torch._dynamo.exc import TorchDynamoException

        limits.recompile_limit = max(SIZES, limits.recompile_limit)
        try:
            return self._run(*inputs, **named)
        except TorchDynamoException as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"the network cannot be compiled ({type(error).__name__}: {first_lines(error)}); leave out --compile"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
