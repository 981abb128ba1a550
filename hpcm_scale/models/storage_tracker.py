"""An account of the memory that tensors take while a network runs, on the meta device too."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageTracker(TorchDispatchMode):
    """Bytes of all storages made inside and still alive: those below and above a size apart."""

    def __init__(self, ignored: list[Tensor], boundary: int) -> None:
        super().__init__()
        self.boundary = boundary
        self.live, self.peak = [0, 0], [0, 0]
        self.gradients = self.peak_with_gradients = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in ignored}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        large = size >= self.boundary
        self.live[large] += size
        self.peak[large] = max(self.peak[large], self.live[large])
        self.peak_with_gradients = max(self.peak_with_gradients, sum(self.live) + self.gradients)
        weakref.finalize(storage, self._forget, key, size)

    def keep_gradient(self, parameter: Tensor) -> None:
        """A parameter has got its gradient, which is kept: an account of its own."""
        assert parameter.grad is not None  # the hook comes after it
        size = parameter.grad.untyped_storage().nbytes()
        self.live[size >= self.boundary] -= size
        self.gradients += size

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live[size >= self.boundary] -= size
