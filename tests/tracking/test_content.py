from dataclasses import replace
from typing import Any

import pytest

from lightning_compress.tracking.content import Artifact, Content, lacking

LOCAL = Content(
    rows=({"epoch": 0, "loss": 0.5, "_timestamp": 10.25, "_step": 0}, {"epoch": 1, "loss": 0.25, "_timestamp": 11.5}),
    summary={"size": 3, "best": True, "table": {"nrows": 2}, "_runtime": 5},
    config=frozenset({"lr", "seed"}),
    files={"config.yaml": 7, "media/table/a.json": 100, "media/gone.json": None},
    artifacts=(Artifact("model", {"m.bin": (5, "abc")}), Artifact("model", {"m.bin": (6, "def")})),
)


def arrived(**changes: Any) -> Content:
    """All of it, as a server would tell it: steps are its own, W&B's own files are written anew, links are resolved."""
    rows = (
        {"epoch": 0, "loss": 0.5 + 1e-15, "_timestamp": 10.25, "_step": 4},
        {"epoch": 1.0, "loss": 0.25, "_timestamp": 11.5, "_step": 5},
    )
    summary = {"size": 3.0, "best": True, "table": {"nrows": 2, "path": "x"}, "more": 1}
    files = {"config.yaml": 9, "media/table/a.json": 100, "media/gone.json": 4}
    return replace(LOCAL, rows=rows, summary=summary, files=files, **changes)


def test_what_arrived_lacks_nothing() -> None:
    assert lacking(LOCAL, arrived()) == []
    assert lacking(Content(), Content()) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (replace(arrived(), rows=arrived().rows[:1]), "history: 1 of 2 rows, the first with epoch 1"),
        (replace(arrived(), rows=()), "history: 2 of 2 rows, the first with epoch 0"),
        (
            replace(arrived(), rows=(arrived().rows[0], {**arrived().rows[1], "loss": 0.26})),
            "history: 1 rows have other values, the first with epoch 1",
        ),
        (replace(arrived(), rows=(*arrived().rows, arrived().rows[1])), "history: 1 rows are there more than once"),
        (replace(arrived(), summary={"size": 3, "table": {}}), "summary: best"),
        (replace(arrived(), summary={**arrived().summary, "size": 4}), "summary: size"),
        (replace(arrived(), config=frozenset({"lr"})), "config: seed"),
        (replace(arrived(), files={"config.yaml": 7, "media/table/a.json": 100}), "files: media/gone.json"),
        (
            replace(arrived(), files={**arrived().files, "media/table/a.json": 99}),
            "files: media/table/a.json has 99 bytes, not 100",
        ),
    ],
)
def test_what_is_lacking_is_named(found: Content, line: str) -> None:
    assert lacking(LOCAL, found) == [line]


def test_every_version_of_an_artifact_must_be_there_with_its_files() -> None:
    first, second = LOCAL.artifacts
    assert lacking(LOCAL, arrived(artifacts=(second, first))) == []
    assert lacking(LOCAL, arrived(artifacts=(first,))) == ["artifact model: no version has these files: m.bin"]
    bare = lacking(replace(LOCAL, artifacts=(first,)), arrived(artifacts=(Artifact("other", first.entries),)))
    assert bare == ["artifact model: not there, or not committed"]
    wrong = Artifact("model", {"m.bin": (5, "abd")})
    assert lacking(replace(LOCAL, artifacts=(first,)), arrived(artifacts=(wrong,))) != []
