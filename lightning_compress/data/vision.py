"""Image classification from a folder or the public hub."""

from collections.abc import Mapping, Sequence
from typing import final

from lightning_compress.data.augment import Augment
from lightning_compress.data.decode import Decoder
from lightning_compress.data.labelled import Batching, LabelledData
from lightning_compress.data.normalize import Statistic
from lightning_compress.data.samples import Part
from lightning_compress.data.source import Columns, locate, open_split, read_split
from lightning_compress.data.splits import held_out


@final
class ImageData(LabelledData):
    """Labelled images, resident on the training device unless told otherwise.

    Args:
        source: a hub id, a folder of Parquet files or a folder with one folder of pictures per class.
        root: folder of local copies; if given, a source that is no whole path is `<root>/<its last name>`.
        image_column: column of pictures or arrays; the only picture column if None.
        label_column: column of integer labels; `label` if None.
        size: height and width to resize to; None demands that all are alike.
        channels: 1 or 3 to convert to grayscale or RGB; None takes 8-bit grayscale and RGB as they are.
        batch_size: samples per train batch and rank.
        eval_batch_size: samples per validation and test batch and rank.
        val_fraction: share of the train split held out for validation.
        test: name of the test split, or the share of the train split to hold out where there is none.
        split_seed: seed of the held-out parts; not the seed of the run.
        limit: train on that many samples only, drawn with `split_seed`: for a smoke run.
        seed: seed of order and transforms.
        augment: random transforms of the train part.
        views: how many times they are drawn for each sample; None draws anew in every epoch.
        mean: `auto`, or what to subtract, in units of 0..1 for pictures.
        std: `auto`, or what to divide by.
        drop_last: leave out the train samples that do not fill a batch.
        channels_last: whether inputs are laid out channels last.
        heads: several questions about each sample, such as {digit: null, parity: [0, 1, 0, ...]}: by name, each
            class's label there, or None for the class itself. Targets are then [B, heads].
        without: classes, by number, of which nothing is trained on; validation, test and the logits keep them.
        cache_dir: folder for decoded images, so that many runs decode once.
        resident: whether the images are held in memory and on the device. If not, they are decoded again each
            epoch, and `auto` statistics cost one more pass.
        workers: processes that decode when not resident.

    Reading raises what `lightning_compress.data.source.open_split` raises, splitting what
    `lightning_compress.data.splits` raises.

    >>> data = ImageData("ylecun/mnist", batch_size=256)  # nothing is read before the first use
    """

    def __init__(
        self,
        source: str,
        *,
        root: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        size: Sequence[int] | None = None,
        channels: int | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.1,
        test: str | float = "test",
        split_seed: int = 0,
        limit: int | None = None,
        seed: int = 0,
        augment: Sequence[Augment] = (),
        views: int | None = None,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        drop_last: bool = False,
        channels_last: bool = False,
        heads: Mapping[str, Sequence[int] | None] | None = None,
        without: Sequence[int] = (),
        cache_dir: str | None = None,
        resident: bool = True,
        workers: int = 2,
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
                workers=workers,
            )
        )
        self._source = locate(source, root)
        self._columns = Columns(image_column, label_column)
        self._decoder = Decoder(None if size is None else tuple(size), channels)
        self._val_fraction, self._test_from, self._split_seed = val_fraction, test, split_seed
        self._limit, self._cache_dir, self._resident = limit, cache_dir, resident
        self._carved_test: Part | None = None

    def prepare_data(self) -> None:
        """Fills the caches on one process before the others look for them."""
        self.setup()

    def read_train_val(self) -> tuple[Part, Part]:
        """Reads the train split and holds out what validates (and tests, if there is no test split)."""
        everything = self._read("train")
        train, val, test = held_out(
            everything.labels,
            val_fraction=self._val_fraction,
            test_fraction=None if isinstance(self._test_from, str) else self._test_from,
            seed=self._split_seed,
            limit=self._limit,
        )
        if test is not None:
            self._carved_test = everything.subset(test)
        return everything.subset(train), everything.subset(val)

    def read_test(self) -> Part:
        """Reads the test split, or gives the part held out for it."""
        if isinstance(self._test_from, str):
            return self._read(self._test_from)
        self.setup()
        assert self._carved_test is not None
        return self._carved_test

    def _read(self, split: str) -> Part:
        read = read_split if self._resident else open_split
        return read(self._source, split, columns=self._columns, decoder=self._decoder, cache_dir=self._cache_dir)
