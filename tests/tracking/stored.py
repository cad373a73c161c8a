"""What the loopback W&B server keeps: runs and artifacts."""

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
WHEN = "2026-01-01T00:00:00"


@dataclass
class Artifact:
    """One version of a logged artifact; `files` are the contents that arrived, by name."""

    id: str
    run: str
    asked: Json
    version: int
    manifest: bytes = b"{}"
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "PENDING"

    @property
    def name(self) -> str:
        return str(self.asked["artifactCollectionName"])

    def node(self, project: Json) -> Json:
        collection = {"__typename": "ArtifactSequence", "name": self.name, "project": project}
        entries = json.loads(self.manifest).get("contents", {})
        return {
            "__typename": "Artifact",
            "id": self.id,
            "artifactSequence": collection,
            "versionIndex": self.version,
            "artifactType": {"name": self.asked["artifactTypeName"]},
            "description": None,
            "metadata": self.asked.get("metadata"),
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": self.state,
            "size": sum(entry["size"] for entry in entries.values()),
            "digest": self.asked["digest"],
            "commitHash": None,
            "fileCount": len(entries),
            "createdAt": WHEN,
            "updatedAt": WHEN,
            "aliases": [
                {"__typename": "ArtifactAlias", "id": alias["alias"], "artifactCollection": collection, **alias}
                for alias in self.asked.get("aliases") or []
            ],
        }


@dataclass
class StoredRun:
    """One run: history as lines by their number, as the server of W&B stores it."""

    project: str
    name: str
    asked: Json = field(default_factory=dict)
    lines: dict[int, Json] = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    opened: int = 0
    exit_code: int | None = None

    @property
    def history(self) -> list[Json]:
        return [self.lines[number] for number in sorted(self.lines)]

    def column(self, key: str) -> list[Any]:
        """Values of one metric, in order, rows without it left out."""
        return [row[key] for row in self.history if key in row]

    @property
    def last_step(self) -> int:
        return max((int(row.get("_step", number)) for number, row in self.lines.items()), default=-1)
