"""When a value is reproduced, and when an ordering holds."""

import pytest

from lightning_compress.tables.schema import Published
from lightning_compress.tables.verdict import Measured, difference, judge, ordering


def published(value: float = 2.0, **changes: float) -> Published:
    return Published(value, "table 1", "V-paper", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cell", "own", "shift", "word", "why"),
    [
        # 2 sqrt(0.1^2 / 4 + 0.1^2 / 1) = 0.2236: our spread stands for the published one, of one run.
        (published(), Measured(2.22, 0.1, 4), 0.0, "reproduced", "off 0.220, bound 0.224"),
        (published(), Measured(2.23, 0.1, 4), 0.0, "not", "off 0.230, bound 0.224"),
        (published(), Measured(1.77, 0.1, 4), 0.0, "not", "off 0.230, bound 0.224"),
        (published(), Measured(2.23, 0.1, 4), -0.01, "reproduced", "off 0.230, bound 0.234 (baseline 0.010)"),
        # 2 sqrt(0.1^2 / 4 + 0.2^2 / 16) = 0.1414
        (published(sd=0.2, n=16), Measured(2.14, 0.1, 4), 0.0, "reproduced", "off 0.140, bound 0.141"),
        (published(sd=0.2, n=16), Measured(2.15, 0.1, 4), 0.0, "not", "off 0.150, bound 0.141"),
        # One run of ours has the published spread: 2 sqrt(0.2^2 + 0.2^2 / 16) = 0.4123
        (published(sd=0.2, n=16), Measured(2.41, None, 1), 0.0, "reproduced", "off 0.410, bound 0.412"),
        (published(), Measured(2.0, None, 1), 0.0, "not judged", "one seed, no spread"),
        (published(0.3), Measured(0.1 + 0.2, 0.0, 2), 0.0, "reproduced", "off 0.000, bound 0.000"),
        (published(at_most=2.5), Measured(2.5, None, 1), 0.0, "reproduced", "off 0.500, own bound: at most 2.5"),
        (published(at_most=2.5), Measured(2.51, 9.0, 2), 9.0, "not", "off 0.510, own bound: at most 2.5"),
        (published(at_least=1.9), Measured(1.89, 9.0, 2), 0.0, "not", "off 0.110, own bound: at least 1.9"),
        (published(within=0.1), Measured(1.91, 0.0, 2), 0.0, "reproduced", "off 0.090, own bound: within 0.1"),
        (published(within=0.1), Measured(1.89, 9.0, 2), 0.0, "not", "off 0.110, own bound: within 0.1"),
        (Published(2.0, "x", "M", within=9), Measured(2.0, 0.1, 2), 0.0, "not judged", "cited from memory"),
    ],
)
def test_a_mean_is_held_against_what_is_published(
    cell: Published, own: Measured, shift: float, word: str, why: str
) -> None:
    verdict = judge(cell, own, shift, 2)
    assert (verdict.word, verdict.why) == (word, why)


def test_differences_are_taken_seed_by_seed_or_of_means() -> None:
    mean, error, how = difference({0: 5.0, 1: 6.0, 2: 8.0}, {0: 4.0, 1: 4.0, 2: 5.0, 7: 99.0})
    assert (mean, how) == (2.0, "3 seeds, paired")
    assert error == pytest.approx(1 / 3**0.5)
    assert difference({0: 5.0}, {0: 4.0}) == (1.0, None, "1 seed, paired")
    mean, error, how = difference({0: 5.0, 1: 7.0}, {2: 4.0, 3: 4.0})
    assert (mean, how) == (2.0, "means of 2 and 2")
    assert error == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gain", "error", "least", "word"),
    [
        (1.0, 0.5, 0.0, "holds"),
        (1.0, 0.51, 0.0, "not decided"),
        (1.0, 0.1, 0.9, "not decided"),
        (0.7, 0.1, 0.9, "does not hold"),
        (1.0, None, 0.0, "not decided"),
        (1.0, 0.0, 1.0, "holds"),
    ],
)
def test_an_ordering_needs_two_standard_errors(gain: float, error: float | None, least: float, word: str) -> None:
    assert ordering(gain, error, least) == word
