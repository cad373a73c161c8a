import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.export.verify import ExportMismatchError, check, compare, distance, tolerance

INPUTS = torch.tensor([[1.0, 2.0], [5.0, 3.0]])


def test_figures_are_those_worked_by_hand() -> None:
    def session(_: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array([[1.0, 2.5], [5.0, 6.0]], np.float32)

    assert compare(nn.Identity(), session, INPUTS) == pytest.approx(
        {"max_error": 3.0, "mean_error": 3.5 / 4, "relative_error": 3.5 / 11, "agreement": 0.5}
    )


def test_the_session_is_given_the_inputs_and_gradients_are_not_needed() -> None:
    net = nn.Linear(2, 3)

    def session(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(batch @ net.weight.detach().numpy().T + net.bias.detach().numpy())

    assert compare(net, session, INPUTS)["max_error"] < 1e-6


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ExportMismatchError, match=r"shape \(2, 2\), got \(2, 1\)"):
        compare(nn.Identity(), lambda batch: batch[:, :1], INPUTS)


@pytest.mark.parametrize(("high", "limit"), [(255, 4 / 255), (15, 4 / 15), (3, 0.5)])
def test_tolerance_follows_the_coarsest_activation(high: int, limit: float) -> None:
    zero = torch.tensor(0)
    net = nn.Sequential(*(FixedQuantizer(torch.tensor(1.0), zero, 0, top) for top in (255, high)))
    assert tolerance(net) == pytest.approx(limit)


def test_tolerance_grows_with_the_root_of_the_number_of_roundings() -> None:
    one = [FixedQuantizer(torch.tensor(1.0), torch.tensor(0), 0, 255) for _ in range(16)]
    assert tolerance(nn.Sequential(*one)) == pytest.approx(8 / 255)


def test_tolerance_of_a_float_model_is_that_of_float_sums() -> None:
    assert tolerance(nn.Linear(2, 2)) == 1e-3


@pytest.mark.parametrize("error", [0.02, float("nan"), float("inf")])
def test_check_names_the_size_of_the_error(error: float) -> None:
    with pytest.raises(ExportMismatchError, match=rf"off by {error:.3g} .* explains 0.01; .* 75.0% of the inputs"):
        check({"relative_error": error, "agreement": 0.75}, 0.01)


def test_nan_outputs_do_not_pass() -> None:
    def session(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch * np.float32("nan")

    model: nn.Module = nn.Identity()
    outputs: Tensor = model(INPUTS)
    assert outputs.isfinite().all()
    with pytest.raises(ExportMismatchError):
        check(compare(model, session, INPUTS), 0.5)


def test_of_several_outputs_the_worst_counts_and_each_is_told() -> None:
    right = {"a": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([[2.0, 4.0]])}
    found = distance(right, {"b": np.array([[2.0, 1.0]], np.float32), "a": np.array([[1.0, 3.0]], np.float32)})
    assert {name: found[name] for name in ("max_error", "relative_error", "agreement")} == {
        "max_error": 3.0,
        "relative_error": 0.5,
        "agreement": 0.0,
    }
    assert (found["relative_error/a"], found["relative_error/b"]) == (0.0, 0.5)
    assert (found["agreement/a"], found["agreement/b"]) == (1.0, 0.0)


@pytest.mark.parametrize("bad", ["a", "b"])
def test_nan_in_one_of_several_outputs_does_not_pass(bad: str) -> None:
    right = {"a": INPUTS, "b": INPUTS}
    with pytest.raises(ExportMismatchError):
        check(distance(right, right | {bad: INPUTS * float("nan")}), 0.5)


@pytest.mark.parametrize("got", [{"a": INPUTS}, {"a": INPUTS, "c": INPUTS}, INPUTS])
def test_outputs_of_other_names_are_refused(got: object) -> None:
    with pytest.raises(ExportMismatchError, match="expected outputs called a, b, got "):
        distance({"a": INPUTS, "b": INPUTS}, got)


def test_the_only_output_needs_no_name() -> None:
    assert distance({"a": INPUTS}, INPUTS.numpy())["max_error/a"] == 0.0


def test_classes_are_the_second_dimension() -> None:
    expected = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # class 0, then class 1
    assert distance(expected, expected.flip(1))["agreement"] == 0.0
    assert distance(expected, expected + torch.tensor([0.0, 2.0]))["agreement"] == 1.0
