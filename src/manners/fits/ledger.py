"""Counts what lives in memory while a step is played through with tensors that have shapes and no numbers.

So a prediction runs the very code that trains, on any architecture, and spends neither memory nor arithmetic.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LOGITS, CACHE, DECODING = "logits", "KV cache", "decoding, beside its cache"
aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """Within, floating-point tensors are imaginary and counted; integers and masks are real.

    What an imaginary number decides is answered with 1, and integers made of such numbers are 0: no reply ends early
    then. ``vocabulary`` is the width by which logits are told from other tensors.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self.imagining = FakeTensorMode()
        self.vocabulary = vocabulary
        self.part = "weights"  # to whom new tensors are booked
        self.phase = ""
        self.known: dict[int, tuple[Any, str, int]] = {}  # by storage
        self.live: Counter[str] = Counter()  # bytes by part
        self.peaks: dict[str, Counter[str]] = {}  # of each phase, when it held most

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self.call(func, args, kwargs or {})
        part = self.part
        if func is aten.cat.default and part == DECODING and made.ndim == 4:  # keys and values grow by it
            self.enter(made, CACHE)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                wide = tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary and part != "weights"
                self.enter(tensor, LOGITS if wide else part)
        return made

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if tensors and not any(isinstance(t, FakeTensor) for t in tensors):
            made = func(*args, **kwargs)
            if all(map(is_whole, tree_leaves(made))):
                return made
        if func is aten._local_scalar_dense.default:
            return 1.0
        if func is aten.index.Tensor or func is aten.index_put_.default or func is aten.index_put.default:
            args = (args[0], positions(args[1]), *args[2:])
        args, kwargs = tree_map(self.imagine, (args, kwargs))
        with self.imagining:
            made = func(*args, **kwargs)
        if not tensors and is_whole(made):
            return func(*args, **kwargs)
        return tree_map(real_if_whole, made)

    def imagine(self, value: Any) -> Any:
        real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return self.imagining.from_tensor(value) if real else value

    def enter(self, tensor: torch.Tensor, part: str) -> None:
        """Book the storage of ``tensor``, once; it leaves the books when nothing holds it any more."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes()
        self.known[key] = (weakref.ref(storage, lambda _: self.leave(key)), part, size)
        self.live[part] += size
        peak = self.peaks.get(self.phase)
        if peak is None or self.live.total() > peak.total():
            self.peaks[self.phase] = self.live.copy()

    def leave(self, key: int) -> None:
        _, part, size = self.known.pop(key)
        self.live[part] -= size

    def rebook(self, tensor: torch.Tensor, part: str) -> None:
        """What turns out to be a gradient, say."""
        key = tensor.untyped_storage()._cdata
        reference, before, size = self.known[key]
        self.known[key] = (reference, part, size)
        self.live[before] -= size
        self.live[part] += size

    @contextmanager
    def booking(self, part: str, phase: str = "") -> Iterator[None]:
        """Within, new tensors are booked to ``part``, and peaks to ``phase`` where it is named."""
        before = self.part, self.phase
        self.part, self.phase = part, phase or self.phase
        try:
            yield
        finally:
            self.part, self.phase = before


def positions(indices: Any) -> list[Any]:
    """Masks among ``indices`` as the places where they are true: their number decides the size of what is made."""
    found: list[Any] = []
    for index in indices:
        mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
        found += index.nonzero(as_tuple=True) if mask else [index]
    return found


def is_whole(value: Any) -> bool:
    return not (isinstance(value, torch.Tensor) and value.is_floating_point())


def real_if_whole(value: Any) -> Any:
    """Integers and masks made of imaginary numbers become real zeros."""
    imaginary = isinstance(value, FakeTensor) and is_whole(value)
    return torch.zeros(value.shape, dtype=value.dtype) if imaginary else value
