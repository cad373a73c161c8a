"""What benchmarks say of several seeds, as cells of a Markdown table."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def verdict(gaps: Sequence[float]) -> str:
    """Mean and standard error of the gaps, and whether they are above zero."""
    if len(gaps) < 2:
        return ""
    mean, error = float(np.mean(gaps)), float(stats.sem(gaps))
    sure = abs(mean) > stats.t.ppf(0.975, len(gaps) - 1) * error
    word = ("yes" if mean > 0 else "reversed") if sure else "not decided"
    return f"{mean:+.2f} ± {error:.2f}, {word}"
