"""Which channels of which layers hang together: one forward pass in which every value carries a label.

Layers give each of their output channels a fresh label; whatever only moves values (a reshape, a shuffle, a
concatenation, padding) is done to the labels too, so that no shape is guessed; where values meet (a sum, a gate, a
depthwise filter) their labels become one. Label 0 stays for ever: inputs, constants, outputs, and all that meets an
operation without a rule (`operations.py`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_compress.core import edits, surgery
from lightning_compress.core.attention import FewerHeads
from lightning_compress.core.inputs import call
from lightning_compress.prune import operations
from lightning_compress.prune.labels import Labels, Links, constant

#: The place of the input's label where it has one.
INPUT = ("", "in")
_LAYERS: tuple[type[nn.Module], ...] = (*edits.WRITERS, *edits.SCALES, nn.LayerNorm)


def trace(model: nn.Module, example: Any, *, label_input: bool = False) -> Links:
    """Links between the layers of a plain `model`, by calling it on `example`.

    With `label_input` the input is one label that may go, at `INPUT`, and outputs may go too: what has that label on
    its side "out" is added to the stream that comes in.

    Raises:
        ValueError: the model cannot be called.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    >>> trace(net, torch.ones(1, 3, 2, 2)).places[("2", "in")].tolist()
    [1, 1, 1, 1, 2, 2, 2, 2]
    """
    labels = Labels()
    if label_input:
        labels.places[INPUT] = labels.fresh(1, example)
        labels.put(example, labels.places[INPUT].expand(example.shape))
    try:
        with torch.no_grad(), warnings.catch_warnings(), surgery.evaluating(model), _plain_attention():
            warnings.simplefilter("ignore")
            with _Followed(model, labels):
                outputs = call(model, example)
    except Exception as error:
        raise ValueError(
            f"channel pruning could not trace the model: {error}; expected plain tensor operations"
        ) from error
    if not label_input:
        labels.keep_for_ever(outputs)
    return labels.links()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as the operations that it is made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@final
class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation inside, and takes the layers that edits can cut as a whole."""

    def __init__(self, model: nn.Module, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._labels = model, labels
        self._inside = 0  # layers that are under way
        self._handles: list[Any] = []
        holders: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), []).append(module)
        self._tied = {module for modules in holders.values() if len(modules) > 1 for module in modules}

    def __enter__(self) -> Any:
        for name, layer in self._model.named_modules():
            if isinstance(layer, _LAYERS):
                self._handles.append(layer.register_forward_pre_hook(self._begin))
                self._handles.append(layer.register_forward_hook(partial(self._end, name), with_kwargs=True))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if not self._inside:
            operations.follow(self._labels, func, args, kwargs or {}, outputs)
        return outputs

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._inside += 1

    def _end(self, name: str, module: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        value = tree_leaves(outputs)[0]
        if isinstance(module, nn.MultiheadAttention):
            self._labels.keep_for_ever(inputs)
            _attention(self._labels, name, module, value)
        elif isinstance(module, nn.LayerNorm):
            _layer_norm(self._labels, module, inputs[0], value)
        elif isinstance(module, edits.SCALES):
            _scale(self._labels, name, module, inputs[0], value)
        else:
            _writer(self._labels, name, module, inputs[0], value)
        if module in self._tied:  # cut on one side only it would be two weights
            self._labels.keep_for_ever(inputs, value)
        self._inside -= 1


def _scale(labels: Labels, name: str, module: Any, inputs: Tensor, value: Tensor) -> None:
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        labels.put(value, labels.of(inputs))
        return
    channels = labels.channels(inputs, 1)
    if isinstance(module, nn.GroupNorm):  # it cannot lose part of what it takes a mean over
        together = channels.view(module.num_groups, -1)
        labels.same(together[:, :1], together)
    labels.record(name, "out", channels)
    labels.emit(value, channels, 1)


def _layer_norm(labels: Labels, module: nn.LayerNorm, inputs: Tensor, value: Tensor) -> None:
    own = labels.of(inputs)
    if not all(constant(own, -1 - dim) for dim in range(len(module.normalized_shape))):
        labels.keep_for_ever(inputs)
    labels.put(value, own)


def _writer(labels: Labels, name: str, module: Any, inputs: Tensor, value: Tensor) -> None:
    dim = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
    own, read = labels.own(name, value.shape[dim], value), labels.channels(inputs, dim)
    groups = getattr(module, "groups", 1)
    if groups == 1:
        labels.record(name, "in", read)
    elif isinstance(module, edits.TRANSPOSED):
        labels.same(torch.cat([own, read]), own.new_zeros(()))
    elif groups == len(read):
        labels.same(own.view(groups, -1), read[:, None])
    else:  # the same places in every group
        for channels in (own, read):
            labels.same(channels.view(groups, -1)[:1], channels.view(groups, -1))
        labels.record(name, "in", read.view(groups, -1)[0])
    labels.emit(value, own, dim)


def _attention(labels: Labels, name: str, module: nn.MultiheadAttention, value: Tensor) -> None:
    out = surgery.dotted(name, "out_proj")
    labels.emit(value, labels.own(out, module.embed_dim, value), -1)
    known = module._qkv_same_embed_dim or isinstance(module, FewerHeads)
    if known and module.bias_k is None and not module.add_zero_attn:
        heads = labels.fresh(module.num_heads, value)
        labels.heads.append(heads)
        rows = heads.repeat_interleave(module.head_dim)
        labels.record(name, "out", rows.repeat(3))
        labels.record(out, "in", rows)
