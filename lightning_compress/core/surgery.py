"""Operations on a live module tree: replace a submodule, put a child on an input or output, make a plain copy."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from lightning_compress.core import recurrent
from lightning_compress.core.inputs import call
from lightning_compress.core.tap import remove_taps


def dotted(prefix: str, name: str) -> str:
    """The name of what `prefix` holds as `name`; the empty prefix is the model itself.

    >>> dotted("block.0", "weight"), dotted("", "weight")
    ('block.0.weight', 'weight')
    """
    return f"{prefix}.{name}" if prefix else name


def replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` at `name` in `model`, in place; the empty name stands for the model itself.

    >>> net = replace(nn.Sequential(nn.BatchNorm1d(2)), "0", nn.Identity())
    >>> net
    Sequential(
      (0): Identity()
    )
    """
    if not name:
        return new
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    return model


@final
class _OnInput:
    """A forward pre-hook that sends a layer's first input through its child `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, child = args[0], getattr(layer, self.name)
        if isinstance(first, PackedSequence):
            return (first._replace(data=child(first.data)), *args[1:])
        return (child(first), *args[1:])


@final
class _OnOutput:
    """A forward hook that sends a module's output through its child `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return getattr(module, self.name)(output)


INPUT_CHILD = "input_quantizer"
OUTPUT_CHILD = "output_quantizer"


def put_on_input(layer: nn.Module, child: nn.Module) -> None:
    """Make `child` a submodule of `layer` that transforms its first input; replaces one that is there.

    >>> layer = nn.Linear(2, 2)
    >>> put_on_input(layer, nn.ReLU())
    >>> [name for name, _ in layer.named_children()]
    ['input_quantizer']
    """
    take_from_input(layer)
    layer.add_module(INPUT_CHILD, child)
    layer.register_forward_pre_hook(_OnInput(INPUT_CHILD))


def take_from_input(layer: nn.Module) -> None:
    """Remove what `put_on_input` put there, if anything."""
    layer._modules.pop(INPUT_CHILD, None)
    for key in [key for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, _OnInput)]:
        del layer._forward_pre_hooks[key]


def put_on_output(module: nn.Module, child: nn.Module) -> None:
    """Make `child` a submodule of `module` that transforms its output, a tensor; replaces one that is there.

    >>> layer = nn.Sequential(nn.Linear(2, 2))
    >>> put_on_output(layer[0], nn.ReLU())
    >>> bool((layer(torch.randn(9, 2)) >= 0).all())
    True
    """
    take_from_output(module)
    module.add_module(OUTPUT_CHILD, child)
    module.register_forward_hook(_OnOutput(OUTPUT_CHILD))


def take_from_output(module: nn.Module) -> None:
    """Remove what `put_on_output` put there, if anything."""
    module._modules.pop(OUTPUT_CHILD, None)
    for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _OnOutput)]:
        del module._forward_hooks[key]


def masks_on(layer: nn.Module, name: str) -> list[nn.Module]:
    """The masks among the parametrizations of the tensor `name` of `layer`, each once: what has a tensor `mask`.

    What makes values with no exact zero among them registers these once more, after itself.

    >>> masks_on(nn.Linear(2, 2), "weight")
    []
    """
    if not parametrize.is_parametrized(layer, name):
        return []
    stacks: Any = layer.parametrizations
    return list(dict.fromkeys(step for step in stacks[name] if isinstance(getattr(step, "mask", None), Tensor)))


def codebook_on(layer: nn.Module, name: str) -> bool:
    """Whether one of the parametrizations of the tensor `name` of `layer` is a codebook: what says `is_codebook`.

    >>> codebook_on(nn.Linear(2, 2), "weight")
    False
    """
    if not parametrize.is_parametrized(layer, name):
        return False
    stacks: Any = layer.parametrizations
    return any(getattr(step, "is_codebook", False) for step in stacks[name])


@torch.no_grad()
def below(layer: nn.Module, name: str, step: nn.Module) -> Tensor:
    """What comes to the parametrization `step` of the tensor `name` of `layer`: the latent tensor under all before it.

    >>> layer, double = nn.Linear(2, 2), nn.Identity()
    >>> _ = parametrize.register_parametrization(layer, "weight", double)
    >>> torch.equal(below(layer, "weight", double), layer.weight)
    True
    """
    stacks: Any = layer.parametrizations
    value: Tensor = stacks[name].original.detach()
    for other in stacks[name]:
        if other is step:
            break
        value = other(value)
    return value


def latent(layer: nn.Module, name: str) -> Tensor:
    """The trained tensor under all parametrizations of the tensor `name` of `layer`.

    >>> layer = nn.Linear(2, 2)
    >>> weight = layer.weight
    >>> _ = parametrize.register_parametrization(layer, "weight", nn.ReLU())
    >>> latent(layer, "weight") is weight
    True
    """
    stacks: Any = layer.parametrizations if parametrize.is_parametrized(layer, name) else None
    found = getattr(layer, name) if stacks is None else stacks[name].original
    assert isinstance(found, Tensor)
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of `model` in eval mode inside, each in its own mode again after.

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Dropout().eval())
    >>> with evaluating(net):
    ...     net.training
    False
    >>> [module.training for module in net]
    [True, False]
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def watched(
    model: nn.Module,
    example: Any,
    watch: AbstractContextManager[Any],
    *,
    before: Mapping[str, Callable[..., None]],
    after: Mapping[str, Callable[..., None]],
) -> None:
    """Run `example` once in eval mode inside `watch`, calling hooks `before` and `after` the modules of those names.

    >>> from contextlib import nullcontext
    >>> seen = []
    >>> watched(nn.ReLU(), torch.ones(1), nullcontext(), before={}, after={"": lambda *_: seen.append(1)})
    >>> seen
    [1]
    """
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in before.items()]
    handles += [model.get_submodule(name).register_forward_hook(hook) for name, hook in after.items()]
    try:
        with evaluating(model), watch:
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain(model: nn.Module, *, below: bool = False) -> nn.Module:
    """A copy of `model` with every parametrization folded into an ordinary tensor and no child on inputs and outputs.

    With `below`, parametrizations leave what is below them: the model as if there were none.
    The original is left as it is: the copy gets back each layer's own class instead of removing
    parametrizations, because `remove_parametrizations` edits a class that a deep copy shares with its source. The
    copy is not tapped either.

    >>> layer = nn.Linear(2, 2)
    >>> _ = parametrize.register_parametrization(layer, "weight", nn.ReLU())
    >>> type(plain(layer)) is nn.Linear and parametrize.is_parametrized(layer)
    True
    """
    twin = copy.deepcopy(model)
    tied: _Tied = {}
    with evaluating(twin):  # a weight that is drawn at random in training would draw here too
        for module in list(twin.modules()):
            take_from_input(module)
            take_from_output(module)
            remove_taps(module)
            if parametrize.is_parametrized(module):
                _fold(module, latent if below else getattr, tied)
    return twin


#: What was folded of each parametrized tensor so far, with the parametrizations, whose identities have to last.
_Tied = dict[tuple[int, ...], tuple[nn.Parameter, nn.Module]]


def _fold(module: nn.Module, read: Callable[[nn.Module, str], Tensor], tied: _Tied) -> None:
    stacks = module.parametrizations
    assert isinstance(stacks, nn.ModuleDict)
    folded: dict[str, nn.Parameter] = {}
    for name, stack in stacks.items():
        # Masks and rounding leave -0.0 behind; adding zero makes it the plain zero that is on disk.
        value, trained = (
            read(module, name).detach() + 0.0,
            all(p.requires_grad for p in stack.parameters(recurse=False)),
        )
        folded[name] = tied.setdefault(_made_of(stack), (nn.Parameter(value, requires_grad=trained), stack))[0]
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, parameter in folded.items():
        module.register_parameter(name, parameter)
    if isinstance(module, nn.RNNBase):
        recurrent.rest(module)


def _made_of(stack: Any) -> tuple[int, ...]:
    """What two parametrized tensors have in common where they are tied: one latent tensor, under the same steps."""
    return (id(stack.original), *map(id, stack))


def own_names(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every parameter and buffer of the *plain* model by its dotted name: (module that holds it, attribute).

    A parametrized tensor is listed under the name it had before; tied tensors are listed once, parametrized ones
    where their parametrizations are the same ones: what others make of it is its own.

    >>> sorted(own_names(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    names: dict[str, tuple[nn.Module, str]] = {}
    seen: set[tuple[int, ...]] = set()
    for prefix, module in model.named_modules():
        if ".parametrizations" in f".{prefix}" or {INPUT_CHILD, OUTPUT_CHILD} & set(prefix.split(".")):
            continue
        stacks = module.parametrizations if parametrize.is_parametrized(module) else {}
        attributes = [*stacks, *module._parameters, *(k for k in module._buffers if k not in _hidden(module))]
        for attribute in attributes:
            tensor = None if attribute in stacks else getattr(module, attribute)
            made_of = _made_of(stacks[attribute]) if attribute in stacks else (id(tensor),)
            if made_of not in seen and (attribute in stacks or tensor is not None):
                seen.add(made_of)
                names[dotted(prefix, attribute)] = (module, attribute)
    return names


def _hidden(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set
