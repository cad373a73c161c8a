"""Named features: what chosen submodules of an unedited model put out in the last forward pass."""

import difflib
from collections.abc import Iterable
from typing import Self, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@final
class _Tap:
    """A forward hook that keeps the output; one object however often the model is copied, so copies can drop it."""

    def __init__(self, features: dict[str, Tensor], name: str) -> None:
        self.features = features
        self.name = name

    def __call__(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        self.features[self.name] = output

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


def remove_taps(module: nn.Module) -> None:
    """Take every tap off `module` itself, its submodules not included."""
    for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _Tap)]:
        del module._forward_hooks[key]


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """See that the submodules called `names` exist.

    Raises:
        ValueError: the model has no submodule of that name; the message names the nearest.

    >>> check_names(nn.Sequential(nn.ReLU()), ["0", ""])
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
            raise ValueError(f"no module {name!r} to tap; did you mean {near[0]!r}? (names as in named_modules())")


@final
class Taps:
    """Records the outputs of the submodules called `names` in `features`, until `close`.

    Raises:
        ValueError: the model has no submodule of that name; the message names the nearest.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> taps = Taps(net, ["0"])
    >>> _ = net(torch.ones(1, 2))
    >>> taps.features["0"].shape
    torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        names = tuple(names)
        check_names(model, names)
        for name in names:
            hook = _Tap(self.features, name)
            self._handles.append(model.get_submodule(name).register_forward_hook(hook))

    def close(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
