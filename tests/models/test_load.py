import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_compress.models.load import load_weights, timm_model
from lightning_compress.models.mlp import MLP


def net(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP([3], in_features=4, num_classes=2)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_loads_state_dicts_and_checkpoints(tmp_path: Path, prefix: str, nested: bool, suffix: str) -> None:
    source, target = net(0), net(1)
    state: dict[str, Any] = {prefix + key: value for key, value in source.state_dict().items()}
    if prefix:
        state["metrics.total"] = torch.tensor(3)
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / f"w{suffix}")
    assert not same(source, target)
    assert load_weights(target, tmp_path / f"w{suffix}") == ([], [])
    assert same(source, target)


def test_loads_safetensors(tmp_path: Path) -> None:
    source, target = net(0), net(1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, str(tmp_path / "w.safetensors"))
    assert same(source, target)


def test_keeps_a_prefix_that_is_the_models_own(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"model": net(0)}), nn.ModuleDict({"model": net(1)})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_names_the_missing_file_and_its_neighbour(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "resnet20.pt")
    with pytest.raises(FileNotFoundError, match=r"no weights file at .*resnet2\.pt; did you mean 'resnet20\.pt'"):
        load_weights(net(), tmp_path / "resnet2.pt")
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_weights(net(), tmp_path / "nowhere" / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 a broken archive"])
def test_names_a_corrupt_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read .*w{suffix}: it is corrupt"):
        load_weights(net(), path)


def test_names_a_truncated_file(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cannot read .* corrupt"):
        load_weights(net(), tmp_path / "w.pt")


def test_never_unpickles_code(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="objects other than tensors"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [{"epoch": 3, "net": {}}, [torch.zeros(2)], {"state_dict": {"lr": 0.1}}])
def test_refuses_content_without_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="must hold tensors by name"):
        load_weights(net(), tmp_path / "w.pt")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("fc2", "fc_2"): value for key, value in state.items()}


def test_names_keys_that_do_not_match(tmp_path: Path) -> None:
    torch.save(renamed(net().state_dict()), tmp_path / "w.pt")
    target = net(1)
    with pytest.raises(ValueError, match=r"2 names not in the file \(fc2.weight; did you mean 'fc_2.weight'") as error:
        load_weights(target, tmp_path / "w.pt")
    assert "2 names not in the model (fc_2.weight, fc_2.bias" in str(error.value)
    assert same(target, net(1))


def test_loads_what_matches_when_asked_and_says_what_did_not(tmp_path: Path) -> None:
    source, target = net(0), net(1)
    torch.save(renamed(source.state_dict()), tmp_path / "w.pt")
    unmatched = load_weights(target, tmp_path / "w.pt", strict=False)
    assert unmatched.missing == ["fc2.weight", "fc2.bias"]
    assert unmatched.unused == ["fc_2.weight", "fc_2.bias"]
    assert torch.equal(target.get_parameter("fc1.weight"), source.get_parameter("fc1.weight"))
    assert torch.equal(target.get_parameter("fc2.weight"), net(1).get_parameter("fc2.weight"))


def test_refuses_a_file_of_which_nothing_matches_even_when_not_strict(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="4 names not in the file"):
        load_weights(net(), tmp_path / "w.pt", strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_names_both_shapes(tmp_path: Path, strict: bool) -> None:
    torch.save(MLP([3], in_features=5, num_classes=2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"fc1.weight is \(3, 5\) in the file and \(3, 4\) in the model"):
        load_weights(net(), tmp_path / "w.pt", strict=strict)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        timm_model("resnet18", num_classes=10)


# timm imports torchvision, whose own warnings are none of ours.
@pytest.mark.filterwarnings("ignore")
def test_timm() -> None:
    pytest.importorskip("timm")
    model = timm_model("resnet10t", 7, in_channels=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="timm has no model 'resnet81'; did you mean 'resnet"):
        timm_model("resnet81", 7)
