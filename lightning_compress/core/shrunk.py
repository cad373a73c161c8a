"""A smaller model as two plain files: its `state_dict`, and the edits that make its shape of the base network."""

import json
from pathlib import Path

import torch
from torch import nn

from lightning_compress.core.edits import replay
from lightning_compress.core.files import write_text
from lightning_compress.core.method import Compact

WEIGHTS, EDITS = "weights.pt", "edits.json"


def save(compact: Compact, folder: Path) -> None:
    """Write `weights.pt` and `edits.json` into `folder`."""
    torch.save(compact.model.state_dict(), folder / WEIGHTS)
    write_text(folder / EDITS, json.dumps(compact.edits))


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """The smaller model in `folder`, made of the base network `model`, which is changed in place; in eval mode.

    The same without this package takes whoever replays the edits: see `core/edits.py` for what they say.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: the base network is another one, or the model has quantized activations, which only the packed
            file holds.

    >>> import tempfile
    >>> net = nn.Linear(2, 2)
    >>> with tempfile.TemporaryDirectory() as home:
    ...     save(Compact(net, {}), Path(home))
    ...     same = load(home, nn.Linear(2, 2))
    >>> torch.equal(same.weight, net.weight)
    True
    """
    home = Path(folder)
    state = torch.load(home / WEIGHTS, map_location="cpu", weights_only=True)
    smaller = replay(model, json.loads((home / EDITS).read_text()))
    try:
        smaller.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{home / WEIGHTS} does not fit the base network after {EDITS}: expected the network that was compressed, "
            f"and no quantized activations (those are in model.lcz): {error}"
        ) from error
    return smaller.eval()
