"""Named features: what chosen submodules of an unedited model put out in the last forward pass."""

import difflib
from collections.abc import Iterable
from typing import final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules:
                near = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
                raise ValueError(f"no module {name!r} to tap; did you mean {near[0]!r}? (names as in named_modules())")
            self._handles.append(modules[name].register_forward_hook(self._keep(name)))

    def _keep(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            self.features[name] = output

        return hook

    def close(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
