"""What every architecture of the package must do: one row per file in conf/model that builds by itself."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor, nn

import lightning_compress

FOLDER = Path(lightning_compress.__file__).parent / "conf" / "model"
FILES = sorted(FOLDER.glob("*.yaml"))
# (file, images): the deepest networks are the shallow ones repeated, so they are not traced again.
IMAGES = {
    "lenet_300_100": (1, 28),
    "mlp": (1, 8),
    "lenet5": (1, 28),
    "resnet8": (3, 16),
    "preact_resnet20": (3, 16),
    "wrn_16_2": (3, 16),
    "resnet18": (3, 32),
    "mobilenet_v1": (3, 32),
    "vgg7": (3, 16),
    "vgg16": (3, 32),
    "small_conv": (1, 8),
    "ds_cnn_s": (1, 10),
    "ds_cnn_m": (1, 10),
    "gru": (1, 10),
    "crnn": (1, 12),
}
#: Depths that take less long to compile.
SHALLOW = {"vgg16": 11, "preact_resnet20": 8, "wrn_16_2": 10}
#: Those that take seconds to compile and have no shallow form.
LONG = {"resnet18", "mobilenet_v1"}
# Takes token ids, and pads them with 0.
TEXTS = {"text_transformer", "text_lstm", "text_gru"}
# Takes token ids and tells the one that follows each.
LANGUAGE = {"lstm_lm"}
MODELS = [*IMAGES, *sorted(TEXTS), *sorted(LANGUAGE)]
RECURRENT = {"gru", "crnn", "text_lstm", "text_gru", "lstm_lm"}
EXTERNAL = {"timm", "huggingface"}
REPEATED = {
    *(f"resnet{depth}" for depth in (14, 20, 26, 32, 34, 44, 56, 110)),
    *(f"preact_resnet{depth}" for depth in (32, 44, 56, 110)),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_40_1", "wrn_40_2", "vgg8", "vgg13", "ds_cnn_l"),
}
# Of other files: test_shared_trunk.py.
COMPOSED = {"shared_trunk", "side_by_side"}


def settings(name: str) -> Mapping[str, object]:
    config = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key != "defaults"}


def build(name: str, **extra: object) -> tuple[nn.Module, Tensor]:
    channels, size = IMAGES.get(name, (1, 9))
    facts = {"in_channels": channels, "image_size": size, "num_features": size}
    facts |= {"vocab_size": 60, "padding_id": 0, "max_length": 12}
    config = {**settings(name), "num_classes": 7, **facts, "dropout": 0.0, **extra}
    target = get_object(str(config.pop("_target_")))
    model = target(**{key: value for key, value in config.items() if key in inspect.signature(target).parameters})
    assert isinstance(model, nn.Module)
    torch.manual_seed(0)
    if name in LANGUAGE:
        return model, torch.randint(1, 50, (2, size))
    if name in TEXTS:
        tokens = torch.randint(1, 50, (2, size))
        return model, tokens * (torch.arange(size) < torch.tensor([[size], [4]]))
    return model, torch.randn(2, channels, size, size)


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in FILES} == set(MODELS) | EXTERNAL | REPEATED | COMPOSED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_binds_to_the_signature_and_leaves_the_data_to_decide(path: Path) -> None:
    config = dict(settings(path.stem))
    signature = inspect.signature(get_object(str(config.pop("_target_"))))
    assert ("vocab_size" if path.stem in LANGUAGE else "num_classes") in signature.parameters
    facts = {"num_classes", "in_channels", "image_size", "num_features", "vocab_size", "padding_id", "max_length"}
    assert not config.keys() & facts
    assert config.keys() <= signature.parameters.keys()


@pytest.mark.parametrize("width", [0.25, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("name", MODELS)
def test_gives_logits_at_every_width(name: str, width: float) -> None:
    with torch.device("meta"):
        model, inputs = build(name, width=width)
    assert model(inputs).shape == ((2, 60, 9) if name in LANGUAGE else (2, 7))


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")  # of torch's recurrent layers
@pytest.mark.parametrize("name", MODELS)
def test_exports_with_a_free_batch_size_and_length(name: str) -> None:
    # Of recurrent layers only the ONNX exporter leaves the length free: tests/run/test_text.py.
    texts = name in TEXTS - RECURRENT
    model, inputs = build(name, width=0.25)
    model.eval()
    free = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("length")} if texts else {})
    program = torch.export.export(model, (inputs,), dynamic_shapes=(free,))
    other = torch.cat([inputs, inputs + 1])
    other = other[:, :6] if texts else other
    torch.testing.assert_close(program.module()(other), model(other))


# torch.compile leaves recurrent layers out.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in MODELS if name not in RECURRENT],
)
def test_compiles_without_a_graph_break(name: str) -> None:
    model, inputs = build(name, width=0.25, **({"depth": SHALLOW[name]} if name in SHALLOW else {}))
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    expected = model(inputs)
    outputs = compiled(inputs)
    torch.testing.assert_close(outputs, expected)
    outputs.sum().backward()
    expected.sum().backward()
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    model, inputs = build(name, width=0.25)
    model(inputs).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_what_is_behind_a_text_changes_nothing(name: str) -> None:
    model, inputs = build(name)
    model.eval()
    outputs = model(inputs)
    torch.testing.assert_close(model(nn.functional.pad(inputs, (0, 3))), outputs)
    torch.testing.assert_close(model(inputs[1:, :4]), outputs[1:])
    assert not torch.allclose(model(inputs[1:, :3]), outputs[1:], atol=1e-4), "but the text does"
