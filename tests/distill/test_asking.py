from typing import Any

import pytest
from torch import Tensor

from lightning_compress.distill.asking import asked
from lightning_compress.distill.logits import dkd, mse


def test_a_loss_asks_by_the_names_of_its_parameters() -> None:
    assert asked(dkd, ("temperature", "targets"), {"beta": 2.0}, owner="Distill") == {"temperature", "targets"}
    assert asked(mse, ("temperature", "targets"), {}, owner="Distill") == frozenset()


def _needs_more(student: Tensor, teacher: Tensor, labels: Tensor) -> Any: ...


def test_wrong_options_and_unknown_needs_are_errors() -> None:
    with pytest.raises(ValueError, match=r"Distill: no option 'bata' of 'dkd': did you mean 'beta'\?"):
        asked(dkd, ("temperature", "targets"), {"bata": 2.0}, owner="Distill")
    with pytest.raises(ValueError, match=r"no option 'beta' of 'mse': it has none"):
        asked(mse, ("temperature",), {"beta": 2.0}, owner="Distill")
    with pytest.raises(ValueError, match=r"'_needs_more' asks for 'labels'; there is targets, or set it in options"):
        asked(_needs_more, ("targets",), {}, owner="Distill")
    assert asked(_needs_more, ("targets",), {"labels": 3}, owner="Distill") == frozenset()
