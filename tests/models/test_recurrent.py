import torch

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.crnn import CRNN
from lightning_compress.models.gru import GRUClassifier


def test_sizes_of_hello_edge() -> None:
    # Layer sizes of the paper's S networks; PyTorch's GRU has a second bias of each gate.
    gru = GRUClassifier(num_features=10, num_classes=12)
    assert num_params(gru) == 3 * 154 * (10 + 154 + 2) + 154 * 12 + 12
    crnn = CRNN(num_features=10, num_classes=12)
    recurrent = 3 * 60 * (48 * 4 + 60 + 2) + 3 * 60 * (60 + 60 + 2)
    assert num_params(crnn) == 48 * 40 + 2 * 48 + recurrent + 60 * 84 + 84 + 84 * 12 + 12
    # Its table: 3.8 and 3.0 million operations, for 25 and 49 frames; a multiply-accumulate is two.
    operations = [2 * sum(macs(net, torch.zeros(1, 1, t, 10)).values()) for net, t in ((gru, 25), (crnn, 49))]
    assert [round(count / 1e6, 1) for count in operations] == [3.8, 3.0]


def test_frames_are_read_in_their_order() -> None:
    torch.manual_seed(0)
    for net in (GRUClassifier(8, num_features=10).eval(), CRNN(8, 8, num_features=10).eval()):
        inputs = torch.randn(2, 1, 49, 10)
        assert not torch.allclose(net(inputs), net(inputs.flip(2)), atol=1e-4)
        torch.testing.assert_close(net(inputs)[:1], net(inputs[:1]))
