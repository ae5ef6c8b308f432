"""Modules built and run without memory: PyTorch's fake tensors, with values where they are small.

A fake tensor has a shape, a type and a place, and no values: operations on it say what they would give, as the
processor's own kernels are chosen. Foreign code was not written for that: it reads drop-path rates out of
`torch.linspace`, builds tables in numpy, makes masks without saying where. So what is small and follows from constants
is computed as well, for whoever asks; what follows from weights or inputs without values has none.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from cidl_sim.blocks.coverage import storage_key

# Values are kept of storages of so many bytes: a table of positions, a mask of a thousand tokens, no weights.
MOST_BYTES = 1 << 22
_DEVICE_OF, _PROCESSOR = torch.ops.prim.device.default, torch.device("cpu")
_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")


class NoValueError(RuntimeError):
    """A value was asked for that follows from weights or inputs, which have none here."""


class WithoutMemory:
    """A world in which tensors take no memory. What is made in one `inside()` can be used in the next."""

    def __init__(self) -> None:
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self._values = _Values(self._fakes)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Until the end tensors are made here, whichever device is asked for."""
        # What goes wrong is raised; PyTorch logs it with its traceback as well. And layers that have a fused path leave
        # it where a function may be overridden, as `_OneDevice` does: nothing is here.
        was_disabled, has_function = _LOGGER.disabled, torch.overrides.has_torch_function
        _LOGGER.disabled, torch.overrides.has_torch_function = True, _is_never_overridden
        try:
            with _OneDevice(self._values), self._fakes, self._values, torch.no_grad():
                yield
        finally:
            _LOGGER.disabled, torch.overrides.has_torch_function = was_disabled, has_function

    def tensors(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Stand-ins for tensors from elsewhere; those that share a storage share one here."""
        return [self._values.stand_in(tensor) for tensor in tensors]

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module from elsewhere; one that was made here is given back as it is."""
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        originals = {id(tensor): tensor for _, tensor in named}
        if all(self._values.is_here(tensor) for tensor in originals.values()):
            return module
        memo: dict[int, Any] = {}
        for key, tensor in originals.items():
            made = self._values.stand_in(tensor, with_values=not isinstance(tensor, nn.Parameter))
            memo[key] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
        with _alone():
            return copy.deepcopy(module, memo)


def _is_never_overridden(args: Iterable[Any]) -> bool:
    return False


class _OneDevice(TorchFunctionMode):
    """There is one device, the processor, whatever code asks for; and values are read where there are any."""

    def __init__(self, values: _Values) -> None:
        super().__init__()
        self._values = values

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = "cpu"
        if function is Tensor.to:
            args = tuple(_here(arg) for arg in args)
        elif function in (Tensor.cuda, Tensor.cpu):
            return args[0]
        elif function in (Tensor.numpy, Tensor.__array__):
            args = (self._values.of(args[0]), *args[1:])
        return function(*args, **kwargs)


def _here(argument: Any) -> Any:
    is_device = isinstance(argument, torch.device)
    if isinstance(argument, str):
        try:
            is_device = torch.device(argument) is not None
        except RuntimeError:
            is_device = False
    return "cpu" if is_device else argument


class _Values(TorchDispatchMode):
    """Beside the fake tensors the values of those that are small and follow from constants, by storage."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self._fakes = fakes
        self._known: dict[int, Tensor] = {}  # real storages, as bytes, by the key of the fake one
        self._stand_ins: dict[int, tuple[Any, Tensor]] = {}  # by key of a storage from elsewhere: that, and bytes here

    def is_here(self, tensor: Tensor) -> bool:
        """Whether a tensor was made here."""
        return isinstance(tensor, FakeTensor) and tensor.fake_mode is self._fakes

    def of(self, tensor: Tensor) -> Tensor:
        """The values of a tensor. NoValueError where it has none."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        found = self._value(tensor)
        if found is None:
            raise NoValueError("a value is read that follows from weights or inputs, which have none here")
        with _alone():
            return found.clone()

    def stand_in(self, tensor: Tensor, with_values: bool = True) -> Tensor:
        """What stands for a tensor from elsewhere; its values come along where they are few."""
        if self.is_here(tensor):
            return tensor
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if storage._cdata not in self._stand_ins:
            with _alone(), self._fakes:
                flat = torch.empty(size, dtype=torch.uint8)
            # The storage is kept, so that no other one gets its key.
            self._stand_ins[storage._cdata] = storage, flat
            is_real = tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
            if with_values and is_real and size <= MOST_BYTES:
                with _alone():
                    self._learn(flat, torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,)))
        flat = self._stand_ins[storage._cdata][1]
        with _alone(), self._fakes:
            whole = flat[: size // tensor.element_size() * tensor.element_size()].view(tensor.dtype)
            return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _DEVICE_OF:
            return _PROCESSOR
        kwargs = kwargs or {}
        used = tensors_in((args, kwargs))
        if not all(self.is_here(tensor) for tensor in used):
            args, kwargs = tree_map_only(Tensor, self.stand_in, (args, kwargs))
            used = tensors_in((args, kwargs))
        if function is torch.ops.aten._local_scalar_dense.default:
            value = self.of(args[0])
            with _alone():
                return value.item()
        are_known = all(storage_key(tensor) in self._known for tensor in used)
        is_computed = are_known and torch.Tag.nondeterministic_seeded not in function.tags
        try:
            result = function(*args, **kwargs)
        except Exception:
            # Shapes that depend on values.
            if not used or not is_computed:
                raise
            return tree_map_only(Tensor, self.stand_in, self._computed(function, args, kwargs))
        changed = _changed(function, args, kwargs) if function._schema.is_mutable else []
        made = tensors_in(result) if is_computed else []
        is_new = bool(changed) or any(storage_key(tensor) not in self._known for tensor in made)  # else views
        if is_computed and is_new and all(_is_small(tensor) for tensor in made):
            self._follow(function, args, kwargs, made, changed)
        elif is_new:
            self._forget(changed)
        return result

    def _follow(self, function: Any, args: Any, kwargs: Any, made: list[Tensor], changed: list[Tensor]) -> None:
        """Do with the values what was done without them."""
        try:
            computed = self._computed(function, args, kwargs)
        except RuntimeError:
            # Such as a type that the processor has no kernel for.
            self._forget(changed)
            return
        for tensor, value in zip(made, tensors_in(computed), strict=False):
            if storage_key(tensor) not in self._known:
                self._learn(tensor, value)

    def _computed(self, function: Any, args: Any, kwargs: Any) -> Any:
        with _alone():
            args, kwargs = tree_map_only(Tensor, self._value, (args, kwargs))
            return function(*args, **kwargs)

    def _value(self, tensor: Tensor) -> Tensor | None:
        """The values of a fake tensor, in the storage that stands for its own: what changes them changes these."""
        storage = self._known.get(storage_key(tensor))
        if storage is None:
            return None
        with _alone():
            empty = torch.empty(0, dtype=tensor.dtype)
            return empty.set_(storage.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())

    def _learn(self, tensor: Tensor, value: Tensor) -> None:
        """Keep the values of a storage that was just made; `tensor` is all that is known of it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        with _alone():
            self._known[key] = torch.zeros(storage.nbytes(), dtype=torch.uint8)
            known = self._value(tensor)
            if known is not None:
                known.copy_(value)
        weakref.finalize(storage, self._known.pop, key, None)

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._known.pop(storage_key(tensor), None)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among the arguments or results of an operation, those in lists and dictionaries too."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list | dict):
            found += tensors_in(value)
    return found


@contextmanager
def _alone() -> Iterator[None]:
    """Real tensors, whatever modes are on."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def _is_small(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() <= MOST_BYTES


def _changed(function: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes into."""
    found = []
    for number, argument in enumerate(function._schema.arguments):  # type: ignore[attr-defined]
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += tensors_in((value,))
    return found
