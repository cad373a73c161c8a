import math

import pytest

from lightning_compress.core import lookup
from lightning_compress.prune import allocate, scores


def test_bare_name_dotted_path_and_function() -> None:
    assert lookup.function("magnitude", scores) is scores.magnitude
    assert lookup.function("math.sqrt", scores) is math.sqrt
    assert lookup.function(math.cos, scores) is math.cos


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no function 'magnitud'.*did you mean 'magnitude'\?"):
        lookup.function("magnitud", scores)


@pytest.mark.parametrize("name", ["Tensor", "torch", "math", "_top", "Scores", "zzz"])
def test_what_a_file_imports_or_hides_is_not_offered(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no function '{name}'.*above, erdos_renyi, .*uniform"):
        lookup.function(name, allocate)


@pytest.mark.parametrize("name", ["no_such_package.f", "math.no_such_function"])
def test_a_dotted_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="expected the dotted path of a function"):
        lookup.function(name, scores)


def test_a_dotted_path_to_something_else() -> None:
    with pytest.raises(ValueError, match=r"expected a function at 'math.pi', got float"):
        lookup.function("math.pi", scores)


def test_among_a_table_a_dotted_path_or_the_thing_itself() -> None:
    known = {"root": math.sqrt}
    assert lookup.among("root", known, owner="Example") is math.sqrt
    assert lookup.among("math.floor", known, owner="Example") is math.floor
    assert lookup.among(math.ceil, known, owner="Example") is math.ceil
    with pytest.raises(ValueError, match=r"Example: no 'rot' \(it has root\): did you mean 'root'\?"):
        lookup.among("rot", known, owner="Example")
    with pytest.raises(ValueError, match=r"expected the dotted path of a function, got 'math\.flor'"):
        lookup.among("math.flor", known, owner="Example")
