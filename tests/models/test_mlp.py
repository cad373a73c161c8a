import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress.cost.params import num_params
from lightning_compress.models.mlp import MLP, lenet_300_100, mlp


def test_published_sizes() -> None:
    assert num_params(lenet_300_100()) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266_610
    assert num_params(mlp([1200, 1200])) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10 == 2_395_210
    assert num_params(mlp([800, 800])) == 784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10 == 1_276_810


def test_computes_relu_layers_and_a_linear_one() -> None:
    torch.manual_seed(0)
    net = MLP([5, 4], in_features=6, num_classes=3)
    inputs = torch.randn(7, 2, 3)
    state = net.state_dict()
    hidden = F.relu(inputs.reshape(7, 6) @ state["fc1.weight"].T + state["fc1.bias"])
    hidden = F.relu(hidden @ state["fc2.weight"].T + state["fc2.bias"])
    torch.testing.assert_close(net(inputs), hidden @ state["fc3.weight"].T + state["fc3.bias"])


def test_dropout_only_where_asked() -> None:
    assert not [m for m in MLP([5], 6, 3).modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in MLP([5, 5], 6, 3, dropout=0.5).modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    inputs = MLP([5], 6, 3, input_dropout=0.2)
    assert [name for name, m in inputs.named_children()][:2] == ["flatten", "dropout0"]
    assert inputs.dropout0.p == 0.2


def test_width_scales_hidden_layers_only() -> None:
    shapes = [tuple(p.shape) for p in lenet_300_100(in_channels=3, image_size=8, width=0.25).parameters()]
    assert shapes == [(75, 192), (75,), (25, 75), (25,), (10, 25), (10,)]
