import torch

from lightning_compress.data.samples import Samples


def test_subset_keeps_inputs_and_labels_together() -> None:
    samples = Samples(torch.arange(5).view(5, 1, 1, 1), torch.arange(5) * 10, ["x"] * 41)
    part = samples.subset(torch.tensor([4, 0, 2])).subset(torch.tensor([2, 0]))
    assert part.inputs.flatten().tolist() == [2, 4]
    assert part.labels.tolist() == [20, 40]
    assert part.fetch(torch.tensor([1])).item() == 4
