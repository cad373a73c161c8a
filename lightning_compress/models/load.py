"""Models of the timm library and start weights from a file."""

import difflib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_PREFIX = "model."
_NAMES_SHOWN = 4


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def timm_model(
    name: str, num_classes: int, *, pretrained: bool = False, in_channels: int = 3, **kwargs: object
) -> nn.Module:
    """Build a model of the timm library by its name.

    Args:
        name: as `timm.list_models()` has it, with or without a weights tag, or `hf-hub:owner/name`.
        num_classes: logits.
        pretrained: download weights.
        in_channels: channels of the image.
        kwargs: passed on to `timm.create_model`.

    Raises:
        ImportError: when timm is not installed.
        ValueError: when timm has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError(f"model=timm needs the timm library: pip install timm ({error})") from error
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{_nearest(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **kwargs)
    assert isinstance(model, nn.Module)
    return model


@final
class Unmatched(NamedTuple):
    """Names that `load_weights` left alone: `missing` from the file, `unused` in the file."""

    missing: list[str]
    unused: list[str]


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> Unmatched:
    """Load start weights from a file into `model`, in place.

    The file is a state dict or a Lightning checkpoint (`.pt`, `.pth`, `.ckpt`), read with `weights_only=True`,
    or `.safetensors`. Where the names fit better without a leading `model.`, only the entries that have it count.

    Args:
        model: takes the weights.
        path: the file.
        strict: every name must match; otherwise what matches is loaded and the rest returned.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, no name matches (with `strict`, any does not), or a shape differs.

    >>> import tempfile
    >>> net = nn.Linear(4, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}}, f"{folder}/last.ckpt")
    ...     load_weights(nn.Linear(4, 2), f"{folder}/last.ckpt")
    Unmatched(missing=[], unused=[])
    """
    weights = read_weights(path)
    own = model.state_dict()
    inner = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
    weights = max((weights, inner), key=lambda candidate: len(candidate.keys() & own.keys()))
    unmatched = Unmatched([key for key in own if key not in weights], [key for key in weights if key not in own])
    if len(unmatched.missing) == len(own) or (strict and any(unmatched)):
        raise ValueError(f"{path} does not fit the model: {_differences(unmatched)}")
    for key, value in own.items():
        if key in weights and weights[key].shape != value.shape:
            raise ValueError(
                f"{path} does not fit the model: {key} is {tuple(weights[key].shape)} in the file "
                f"and {tuple(value.shape)} in the model"
            )
    model.load_state_dict(weights, strict=False)
    return unmatched


def _differences(unmatched: Unmatched) -> str:
    parts = []
    if unmatched.missing:
        shown = [f"{key}{_nearest(key, unmatched.unused)}" for key in unmatched.missing[:_NAMES_SHOWN]]
        parts.append(f"{len(unmatched.missing)} names not in the file ({', '.join(shown)}, ...)")
    if unmatched.unused:
        shown = unmatched.unused[:_NAMES_SHOWN]
        parts.append(f"{len(unmatched.unused)} names not in the model ({', '.join(shown)}, ...)")
    return "; ".join(parts)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, a Lightning checkpoint's `state_dict` or a `.safetensors` file, on the CPU.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is corrupt, or holds other objects than tensors.
    """
    path = Path(path)
    if not path.is_file():
        near = _nearest(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise FileNotFoundError(f"no weights file at {path}{near}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split()) or "it ends early"
        raise ValueError(
            f"cannot read {path}: it is corrupt, or holds objects other than tensors and plain values "
            f"(save model.state_dict() or a .safetensors file): {reason:.200}"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        held = f"a dict with {', '.join(map(str, weights))}" if isinstance(weights, dict) else type(weights).__name__
        raise ValueError(f"{path} must hold tensors by name, or a 'state_dict' entry with them; got {held:.200}")
    return weights
