import torch
from torch import nn

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.text_transformer import Block, TextTransformer


def test_a_block_is_the_one_of_torch() -> None:
    torch.manual_seed(0)
    ours = Block(16, 4, 64, dropout=0.0).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 64, activation="gelu", norm_first=True, batch_first=True).eval()
    attention = ours.attention
    parts = [attention.query, attention.key, attention.value]
    state = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
    }
    renamed = {"self_attn.out_proj": attention.out, "linear1": ours.fc1, "linear2": ours.fc2}
    for name, layer in {**renamed, "norm1": ours.norm1, "norm2": ours.norm2}.items():
        state |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    theirs.load_state_dict(state)
    inputs, given = torch.randn(3, 7, 16), torch.arange(7) < torch.tensor([[7], [4], [1]])
    expected = theirs(inputs, src_key_padding_mask=~given)
    torch.testing.assert_close(ours(inputs, given)[given], expected[given])


def test_size_and_multiplications() -> None:
    net = TextTransformer(vocab_size=8000)
    block = 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 4 * 128
    assert num_params(net) == (8000 + 64) * 128 + 4 * block + 2 * 128 + 128 * 2 + 2
    assert 4 * block == 793_088
    counted = macs(net, torch.ones(1, 10, dtype=torch.int64))
    assert sum(counted.values()) == 10 * 4 * (4 * 128 * 128 + 2 * 128 * 512) + 128 * 2


def test_a_text_of_padding_alone_gives_numbers() -> None:
    net = TextTransformer(vocab_size=9, depth=1).eval()
    assert net(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
