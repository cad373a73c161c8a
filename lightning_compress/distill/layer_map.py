"""Which of the teacher's layers each of the student's learns from: `map(students, teachers) -> pairs` of places from 0.

Of networks made of layers that are alike, such as Transformers; `students` and `teachers` say how many there are.
"""


def uniform(students: int, teachers: int) -> list[tuple[int, int]]:
    """Each layer from the last of an equal share of the teacher's (TinyBERT: Jiao et al. 2020, arXiv 1909.10351).

    >>> uniform(2, 4)
    [(0, 1), (1, 3)]
    """
    return [(layer, (layer + 1) * teachers // students - 1) for layer in range(students)]


def skip(students: int, teachers: int) -> list[tuple[int, int]]:
    """`uniform` but for the last layer, which has the outputs to learn from (PKD-Skip: Sun 2019, arXiv 1908.09355).

    >>> skip(3, 6)
    [(0, 1), (1, 3)]
    """
    return uniform(students, teachers)[:-1]


def last(students: int, teachers: int) -> list[tuple[int, int]]:
    """All but the last layer from as many just before the teacher's last (PKD-Last: Sun 2019, arXiv 1908.09355).

    >>> last(3, 6)
    [(0, 3), (1, 4)]
    """
    return [(layer, teachers - students + layer) for layer in range(students - 1)]
