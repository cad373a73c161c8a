"""What every labelled data set offers a trainer; a subclass only says how to read its parts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_compress.data.augment import Augment
from lightning_compress.data.device_loader import DeviceLoader
from lightning_compress.data.normalize import Normalize, Statistic, normalization
from lightning_compress.data.order import BatchOrder
from lightning_compress.data.samples import Part, Samples
from lightning_compress.data.views import BLOCK, block
from lightning_compress.data.worker_loader import WorkerLoader

Loader = DeviceLoader | WorkerLoader


@final
@dataclass(frozen=True, kw_only=True)
class Batching:
    """How parts become normalised batches.

    `batch_size` and `eval_batch_size` count samples per rank; `seed` fixes order and transforms of the train
    part; `workers` counts the processes that read parts which are not in memory. With `views` the transforms are drawn
    that many times for each sample instead of in every epoch, so that a teacher's outputs can be kept. `heads` are
    several questions about each sample, by name: for each class of the data its label there, or None where the class
    itself is the label. Samples of the classes `without`, by number, are left out of the train part, and of no other.

    Raises:
        ValueError: `views` below 1, or without transforms.

    >>> Batching(batch_size=32).drop_last
    False
    """

    batch_size: int
    eval_batch_size: int = 1000
    seed: int = 0
    augment: Sequence[Augment] = ()
    views: int | None = None
    mean: Statistic = "auto"
    std: Statistic = "auto"
    drop_last: bool = False
    channels_last: bool = False
    workers: int = 0
    heads: Mapping[str, Sequence[int] | None] = field(default_factory=dict)
    without: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.views is not None and (self.views < 1 or not self.augment):
            raise ValueError(
                f"views={self.views} is how many random views of each sample there are: 1 or more, with augment given; "
                "write views=null for new ones in every epoch"
            )


class LabelledData(pl.LightningDataModule, ABC):
    """Train, validation and test batches of a labelled data set.

    Nothing is read before the first use. Statistics come from the train part alone; the test part is read only
    when its loader is asked for. Part by part, samples in memory go through a `DeviceLoader` on the trainer's
    device, all others through a `WorkerLoader`. Under distributed training the loaders shard themselves.
    """

    #: What a model is asked of it: "classification" or "next_token" (`core/task.py`).
    task_kind: ClassVar[str] = "classification"

    def __init__(self, batching: Batching) -> None:
        super().__init__()
        self._batching = batching
        self._parts: tuple[Part, Part] | None = None
        self._test: Part | None = None
        self._normalize: Normalize | None = None

    @abstractmethod
    def read_train_val(self) -> tuple[Part, Part]:
        """Reads the train and the validation part."""

    @abstractmethod
    def read_test(self) -> Part:
        """Reads the test part; called after `read_train_val`."""

    def setup(self, stage: str | None = None) -> None:
        """Reads train and validation part once, whatever the stage: the statistics come from there."""
        if self._parts is None:
            train, val = self.read_train_val()
            self._parts = self._left(train), val

    def _left(self, train: Part) -> Part:
        """The train part without the classes that are left out of it.

        Raises:
            ValueError: they are no classes of the data, or all that it has.
        """
        without, count = self._batching.without, len(train.names)
        if not without:
            return train
        left = ~torch.isin(train.labels, torch.tensor(without))
        if not left.any() or not set(without) <= set(range(count)):
            raise ValueError(
                f"without names classes by their numbers, 0 to {count - 1}, and leaves some of them to train on; "
                f"got {list(without)}"
            )
        return train.subset(left.nonzero()[:, 0])

    @property
    def train_part(self) -> Part:
        """Samples to train on; `Batch.index` counts in it."""
        self.setup()
        assert self._parts is not None
        return self._parts[0]

    @property
    def plain_part(self) -> Part:
        """The samples to train on without random transforms, in the form that is normalised."""
        return self.train_part

    @property
    def val_part(self) -> Part:
        """Samples to select on."""
        self.setup()
        assert self._parts is not None
        return self._parts[1]

    @property
    def test_part(self) -> Part:
        """Samples for the final evaluation, with the class names of the train part."""
        if self._test is None:
            test = self.read_test()
            if test.names != self.labels:
                raise ValueError(
                    f"the test part names its classes {test.names}, the train part {self.labels}: they must agree"
                )
            self._test = test
        return self._test

    @property
    def normalize(self) -> Normalize:
        """How stored pixels become inputs."""
        if self._normalize is None:
            self._normalize = normalization(self.plain_part, self._batching.mean, self._batching.std)
        return self._normalize

    @property
    def labels(self) -> list[str]:
        """Name of every class."""
        return self.train_part.names

    @property
    def num_classes(self) -> int | dict[str, int]:
        """Number of classes, by head where there are heads."""
        tables = self._tables
        return {head: int(table.max()) + 1 for head, table in tables.items()} if tables else len(self.labels)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Positions of a sample that have a class each: () where it has one, (T,) of texts."""
        return tuple(self.train_part.labels.shape[1:])

    @property
    def _tables(self) -> dict[str, Tensor]:
        """The label of every class, int64, by head, in the order of the heads' names.

        Raises:
            ValueError: a head does not give every class one label, counted from 0 up.
        """
        own, tables = torch.arange(len(self.labels)), {}
        for head, given in sorted(self._batching.heads.items()):
            table = own if given is None else torch.tensor(given)
            whole = table.shape == own.shape and not table.is_floating_point()
            if not whole or sorted(set(table.tolist())) != list(range(int(table.max()) + 1)):
                raise ValueError(
                    f"heads.{head} must give each of the {len(own)} classes a label, counted from 0 up with none left "
                    f"out, or be null where the class itself is the label; got {given}"
                )
            tables[head] = table
        return tables

    @property
    def num_train(self) -> int:
        """Number of samples in the train part."""
        return len(self.train_part.labels)

    @property
    def example(self) -> Tensor:
        """Two normalised train samples, float32 or token ids, on the CPU, without random transforms."""
        return self.normalize(self.plain_part.fetch(torch.arange(min(2, self.num_train))))

    @property
    def views(self) -> int | None:
        """How many random views of each train sample there are; 0 if it is always the same, None if ever new ones."""
        return self._batching.views if self._batching.augment else 0

    def block(self, number: int, view: int) -> Tensor:
        """Train samples number * BLOCK and following, normalised, in `view`; 0 is without random transforms."""
        first = number * BLOCK
        batching, part = self._batching, self.train_part if view else self.plain_part
        images = part.fetch(torch.arange(first, min(first + BLOCK, self.num_train)))
        shown = block(images, batching.augment, seed=batching.seed, view=view, number=number) if view else images
        return self.normalize(shown)

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a deployer must do to a picture: `(pixel * pixel_scale - mean) / std` at `input_size` (C, H, W)."""
        normalize = self.normalize
        return {
            "mean": list(normalize.mean),
            "std": list(normalize.std),
            "pixel_scale": normalize.pixel_scale,
            "input_size": list(self.example.shape[1:]),
        }

    def save(self, folder: Path) -> dict[str, str]:
        """Writes what else turns raw samples into inputs, such as a tokenizer, into `folder`; files by their use."""
        return {}

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented batches of the train part."""
        return self._loader(self.train_part, train=True)

    def val_dataloader(self) -> Loader:
        """Batches of the validation part, in stored order."""
        return self._loader(self.val_part, train=False)

    def test_dataloader(self) -> Loader:
        """Batches of the test part, in stored order."""
        return self._loader(self.test_part, train=False)

    def _loader(self, part: Part, *, train: bool) -> Loader:
        batching, tables = self._batching, self._tables
        if tables:
            part = part.labelled(torch.stack([table[part.labels] for table in tables.values()], dim=1))
        order = BatchOrder(
            len(part.labels),
            batching.batch_size if train else batching.eval_batch_size,
            shuffle=train,
            seed=batching.seed,
            drop_last=train and batching.drop_last,
            shard=_shard(),
            lengths=part.lengths if isinstance(part, Samples) else None,
        )
        augment = batching.augment if train else ()
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if isinstance(part, Samples):
            loader = DeviceLoader(
                part,
                order,
                normalize=self.normalize,
                augment=augment,
                views=batching.views,
                channels_last=batching.channels_last,
            )
            return loader.to(device)
        if batching.views is not None:
            raise ValueError("views needs the data in memory: write resident=true, or views=null")
        return WorkerLoader(
            part,
            order,
            normalize=self.normalize,
            augment=augment,
            workers=batching.workers,
            pin_memory=device.type == "cuda",
        )


def _shard() -> tuple[int, int]:
    """Rank and number of ranks of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
