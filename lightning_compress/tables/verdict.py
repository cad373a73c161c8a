"""Whether a published value, or a published ordering, holds for runs of ours."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

from lightning_compress.tables.schema import Published

RULE = (
    "A value is reproduced if the mean of our n runs is off by no more than 2 sqrt(sd^2/n + sd_p^2/n_p), plus what our "
    "baseline is off by; sd_p is the published spread or else ours, n_p the number of published runs or else 1. A cell "
    "may have a bound of its own, which is printed. Values cited from memory (†) are never judged. An ordering holds, "
    "or does not, where the mean difference is two standard errors beyond what is published."
)


@final
@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation over `n` seeds; there is no deviation of one."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value.

        >>> Measured.of([1.0, 3.0])
        Measured(mean=2.0, sd=1.4142135623730951, n=2)
        """
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@final
@dataclass(frozen=True)
class Verdict:
    """`reproduced`, `not` or `not judged`, and why: by how much it is off and what is allowed, in words."""

    word: str
    why: str


def judge(published: Published, own: Measured, shift: float, decimals: int) -> Verdict:
    """Hold our mean against a published value; `shift` is what our baseline is off by, in the same unit.

    >>> judge(Published(2.0, "table 1", "V-paper", sd=0.1, n=5), Measured(2.1, 0.1, 5), 0.0, 2)
    Verdict(word='reproduced', why='off 0.100, bound 0.126')
    """
    if published.confidence == "M":
        return Verdict("not judged", "cited from memory")
    off = abs(own.mean - published.value)
    for name, right in (
        ("at most", published.at_most is not None and own.mean <= published.at_most),
        ("at least", published.at_least is not None and own.mean >= published.at_least),
        ("within", published.within is not None and off <= published.within),
    ):
        asked = getattr(published, name.replace(" ", "_"))
        if asked is not None:
            return Verdict("reproduced" if right else "not", f"off {off:.{decimals + 1}f}, own bound: {name} {asked:g}")
    spread = own.sd if own.sd is not None else published.sd
    if spread is None:
        return Verdict("not judged", "one seed, no spread")
    other = published.sd if published.sd is not None else spread
    bound = 2 * math.sqrt(spread**2 / own.n + other**2 / (published.n or 1)) + abs(shift)
    of_baseline = f" (baseline {abs(shift):.{decimals + 1}f})" if shift else ""
    # Means of floats: what is equal on paper may differ in the last bits.
    return Verdict(
        "reproduced" if off <= bound + 1e-9 else "not",
        f"off {off:.{decimals + 1}f}, bound {bound:.{decimals + 1}f}{of_baseline}",
    )


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float | None, str]:
    """Mean of `one - other`, its standard error (None if unknown) and how it was taken: seed by seed if they share any.

    >>> difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0, 2: 9.0})
    (1.0, 0.0, '2 seeds, paired')
    """
    shared = [one[seed] - other[seed] for seed in one if seed in other]
    if shared:
        gap = Measured.of(shared)
        error = None if gap.sd is None else gap.sd / math.sqrt(gap.n)
        return gap.mean, error, f"{gap.n} seed{'s' if gap.n > 1 else ''}, paired"
    a, b = Measured.of(list(one.values())), Measured.of(list(other.values()))
    error = None if a.sd is None or b.sd is None else math.sqrt(a.sd**2 / a.n + b.sd**2 / b.n)
    return a.mean - b.mean, error, f"means of {a.n} and {b.n}"


def ordering(gain: float, error: float | None, least: float) -> str:
    """Whether a gain of at least `least` holds, given its standard error.

    >>> ordering(0.5, 0.1, 0.0), ordering(0.1, 0.1, 0.0), ordering(-0.5, 0.1, 0.0)
    ('holds', 'not decided', 'does not hold')
    """
    if error is None or abs(gain - least) < 2 * error:
        return "not decided"
    return "holds" if gain >= least else "does not hold"
