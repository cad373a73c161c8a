"""Scikit-learn's handwritten digits: real data that needs no download."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from sklearn.datasets import load_digits

from lightning_compress.data.augment import Augment
from lightning_compress.data.labelled import Batching, LabelledData
from lightning_compress.data.normalize import Statistic
from lightning_compress.data.samples import Samples
from lightning_compress.data.splits import held_out


@final
class Digits(LabelledData):
    """1,797 digits of 1x8x8 pixels in 0..1, split into train, validation and test by class.

    Kaynak, "Methods of Combining Multiple Classifiers and Their Applications to Handwritten Digit Recognition",
    1995 (UCI Optical Recognition of Handwritten Digits, test set).

    Args:
        batch_size: samples per train batch and rank.
        eval_batch_size: samples per validation and test batch and rank.
        val_fraction: share of all samples held out for validation.
        test_fraction: share of all samples held out for the final test.
        split_seed: seed of the split; not the seed of the run.
        seed: seed of order and transforms.
        augment: random transforms of the train part.
        views: how many times they are drawn for each sample; None draws anew in every epoch.
        mean: `auto`, or what to subtract.
        std: `auto`, or what to divide by.
        drop_last: leave out the train samples that do not fill a batch.
        channels_last: whether inputs are laid out channels last.
        heads: several questions about each sample, such as {digit: null, parity: [0, 1, 0, ...]}: by name, each
            class's label there, or None for the class itself. Targets are then [B, heads].
        without: classes, by number, of which nothing is trained on; validation, test and the logits keep them.
        only: digits that there are in all parts, in this order the classes from 0 on; empty: all ten.
        limit: train on that many samples only, drawn with `split_seed`.

    Raises:
        ValueError: `only` names something else than digits, each once, or what `data/splits.py` raises.

    >>> data = Digits()
    >>> data.num_classes, data.num_train, list(data.example.shape)
    (10, 1079, [2, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        seed: int = 0,
        augment: Sequence[Augment] = (),
        views: int | None = None,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        drop_last: bool = False,
        channels_last: bool = False,
        heads: Mapping[str, Sequence[int] | None] | None = None,
        without: Sequence[int] = (),
        only: Sequence[int] = (),
        limit: int | None = None,
    ) -> None:
        super().__init__(
            Batching(
                batch_size=batch_size,
                eval_batch_size=eval_batch_size,
                seed=seed,
                augment=augment,
                views=views,
                mean=mean,
                std=std,
                drop_last=drop_last,
                channels_last=channels_last,
                heads=heads or {},
                without=without,
            )
        )
        if not set(only) <= set(range(10)) or len(set(only)) < len(only):
            raise ValueError(f"only names some of the digits 0 to 9, each once; got {list(only)}")
        self._fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        self._only, self._limit = list(only), limit
        self._split_seed = split_seed
        self._carved_test: Samples | None = None

    def read_train_val(self) -> tuple[Samples, Samples]:
        """Reads all digits and splits them."""
        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # stored as 0..16
        everything = Samples(images, torch.from_numpy(digits.target).long(), [str(d) for d in digits.target_names])
        if self._only:
            everything = _only(everything, self._only)
        train, val, test = held_out(everything.labels, **self._fractions, seed=self._split_seed, limit=self._limit)
        assert test is not None
        self._carved_test = everything.subset(test)
        return everything.subset(train), everything.subset(val)

    def read_test(self) -> Samples:
        """The held-out digits."""
        self.setup()
        assert self._carved_test is not None
        return self._carved_test


def _only(samples: Samples, classes: Sequence[int]) -> Samples:
    """The samples of some classes, which count from 0 on in that order."""
    numbers = torch.full((len(samples.names),), -1)
    numbers[list(classes)] = torch.arange(len(classes))
    labels = numbers[samples.labels]
    kept = samples.labelled(labels).subset((labels >= 0).nonzero()[:, 0])
    return replace(kept, names=[samples.names[each] for each in classes])
