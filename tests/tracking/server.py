"""A W&B server on this machine's loopback: keeps what runs send, answers what W&B's client asks, fails on demand."""

import base64
import gzip
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import quote, unquote

import yaml  # type: ignore[import-untyped]

from tests.tracking.stored import WHEN, Artifact, Json, StoredRun

ENTITY = "me"
KEY = "a" * 40


class Server(ThreadingHTTPServer):
    """`fault`: None, an HTTP status for every answer, or "hang"; `loses` is what it takes and does not keep.

    `requests` counts the operations that were asked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.reports: dict[str, Json] = {}
        self.requests: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.fault: int | Literal["hang"] | None = None
        self.loses = ""
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """W&B resets idle connections when it ends; that is no error here."""

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def logged(self, run: str) -> dict[str, Artifact]:
        """The artifacts of a run by name, the last version of each."""
        return {artifact.name: artifact for artifact in self.artifacts.values() if artifact.run == run}

    def answer(self, operation: str, asked: Json) -> Json:
        method = getattr(self, f"_{operation}", None)
        if method is None:
            self.unknown.append(operation)
            return {}
        answered: Json = method(asked.get("input") or asked)
        return answered

    def stream(self, run: str, sent: Json) -> None:
        """One message of a run: rows at the offset it names, the summary, and its end."""
        stored = self.runs[run]
        for name, chunk in (sent.get("files") or {}).items():
            lines = (
                [json.loads(line) for line in chunk["content"]] if name.endswith(("history.jsonl", "y.json")) else []
            )
            if self.loses and self.loses in name:
                continue
            if name == "wandb-history.jsonl":
                stored.lines |= dict(enumerate(lines, start=chunk["offset"]))
            elif name == "wandb-summary.json":
                stored.summary = lines[-1]
        if sent.get("complete"):
            stored.exit_code = sent.get("exitcode")

    def store(self, path: str, body: bytes) -> None:
        """An upload: /run/<id>/<file>, /manifest/<artifact> or /artifact/<artifact>/<file>."""
        kind, owner, *rest = map(unquote, path.strip("/").split("/"))
        if self.loses and self.loses in unquote(path):
            return
        if kind == "run":
            self.runs[owner].files[rest[0]] = body
            if rest[0] == "config.yaml":
                self.runs[owner].config = yaml.safe_load(body)
        elif kind == "manifest":
            self.artifacts[owner].manifest = body
        else:
            self.artifacts[owner].files[rest[0]] = body

    def _Viewer(self, _: Json) -> Json:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "me@here", "flags": "{}"}
        return {"viewer": viewer | {"admin": False, "teams": {"edges": []}, "accounts": [], "__typename": "User"}}

    def _GetDefaultEntity(self, _: Json) -> Json:
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, _: Json) -> Json:
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, asked: Json) -> Json:
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], StoredRun(asked.get("project") or "", asked["name"]))
        run.opened += 1
        run.asked |= {key: value for key, value in asked.items() if value is not None}
        run.config |= {} if self.loses == "config" else json.loads(asked.get("config") or "{}")
        bucket = {"id": run.name, "name": run.name, "displayName": asked.get("displayName"), "config": "{}"}
        more = {"project": self._project(run.project), "historyLineCount": len(run.lines), "sweepName": None}
        return {"upsertBucket": {"bucket": bucket | more | {"description": None}, "inserted": new}}

    def _RunResumeStatus(self, asked: Json) -> Json:
        run, bucket = self.runs.get(asked["name"]), None
        if run is not None:
            bucket = {
                "id": run.name,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.asked.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(run.lines),
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": "[]",
                "config": json.dumps(run.config),
                "tags": run.asked.get("tags"),
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": {**self._project(asked["project"]), "bucket": bucket}}

    def _CreateRunFiles(self, asked: Json) -> Json:
        files = [{"name": name, "uploadUrl": self._place("run", asked["run"], name)} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, asked: Json) -> Json:
        number = len(self.artifacts)
        name = asked["artifactCollectionName"] = (
            asked.get("artifactCollectionName") or asked["artifactCollectionNames"][0]
        )
        versions = [known for known in self.artifacts.values() if known.name == name and known.state == "COMMITTED"]
        same = [known for known in versions if known.asked["digest"] == asked["digest"]]
        found = same[0] if same else Artifact(f"QQ{number}", asked["runName"], asked, len(versions))
        self.artifacts[found.id] = found
        return {"createArtifact": {"artifact": {"id": found.id, "state": found.state, "artifactSequence": {}}}}

    def _CreateArtifactManifest(self, asked: Json) -> Json:
        found = asked["artifactID"]
        file = {"id": found, "uploadUrl": self._place("manifest", found), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": found, "file": file}}}

    def _UpdateArtifactManifest(self, asked: Json) -> Json:
        found = self._CreateArtifactManifest({"artifactID": asked["artifactManifestID"]})
        return {"updateArtifactManifest": found["createArtifactManifest"]}

    def _CreateArtifactFiles(self, asked: Json) -> Json:
        nodes: list[Json] = [
            {
                "storagePath": None,
                "uploadUrl": self._place("artifact", file["artifactID"], file["name"]),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in asked["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, asked: Json) -> Json:
        self.artifacts[asked["artifactID"]].state = "PENDING" if self.loses == "artifact" else "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}

    def _ArtifactType(self, _: Json) -> Json:
        return {"project": None}

    def _ClientIDMapping(self, asked: Json) -> Json:
        found = [known.id for known in self.artifacts.values() if known.asked.get("clientID") == asked["clientID"]]
        return {"clientIDMapping": {"serverID": found[0]} if found else None}

    def _Run(self, asked: Json) -> Json:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"project": {"run": None}}
        fields = {
            "projectId": "1",
            "id": run.name,
            "name": run.name,
            "displayName": run.asked.get("displayName"),
            "state": "running" if run.exit_code is None else "failed" if run.exit_code else "finished",
            "config": json.dumps(run.config),
            "group": run.asked.get("groupName"),
            "jobType": run.asked.get("jobType"),
            "tags": run.asked.get("tags") or [],
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "historyKeys": {"lastStep": run.last_step, "sets": [], "keys": {}},
            "user": {"name": ENTITY, "username": ENTITY},
        }
        return {"project": {"run": fields}}

    def _RunHistoryKeys(self, asked: Json) -> Json:
        return {"project": {"run": {"historyKeys": {"lastStep": self.runs[asked["name"]].last_step}}}}

    def _RunParquetHistory(self, asked: Json) -> Json:
        steps = [{"_step": row["_step"]} for row in self.runs[asked["runName"]].history]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": steps}}}}

    def _HistoryPage(self, asked: Json) -> Json:
        rows = self.runs[asked["run"]].history
        kept = [json.dumps(row) for row in rows if asked["minStep"] <= row["_step"] < asked["maxStep"]]
        return {"project": {"run": {"history": kept}}}

    def _RunFiles(self, asked: Json) -> Json:
        files = self.runs[asked["name"]].files
        nodes = [
            {
                "id": name,
                "name": name,
                "url": "",
                "sizeBytes": len(body),
                "md5": _md5(body),
                "mimetype": "",
                "updatedAt": WHEN,
            }
            for name, body in files.items()
        ]
        return {
            "project": {
                "run": {"fileCount": len(nodes), "files": _page(nodes, asked["fileCursor"], asked["fileLimit"])}
            }
        }

    def _RunOutputArtifacts(self, asked: Json) -> Json:
        project = self._project(asked["project"])
        nodes = [known.node(project) for known in self.artifacts.values() if known.run == asked["run"]]
        return {
            "project": {
                "run": {"artifacts": _page(nodes, asked["cursor"], asked["perPage"]) | {"totalCount": len(nodes)}}
            }
        }

    def _FetchArtifactManifest(self, asked: Json) -> Json:
        return {"artifact": {"currentManifest": {"file": {"directUrl": self._place("manifest", asked["id"])}}}}

    def _ProjectInternalId(self, _: Json) -> Json:
        return {"project": {"id": "1", "internalId": base64.b64encode(b"ProjectInternalId:1").decode()}}

    def _GetProjects(self, _: Json) -> Json:
        user: Json = {"__typename": "User", "id": "1", "name": ENTITY, "username": ENTITY, "email": "me@here"}
        more = {"__typename": "Project", "entityName": ENTITY, "createdAt": WHEN, "isBenchmark": False}
        user |= {"admin": False, "flags": "{}", "entity": ENTITY, "deletedAt": None, "apiKeys": None, "teams": None}
        nodes = [{"id": "1", "name": run.project, "user": user, **more} for run in self.runs.values()]
        return {"models": _page(nodes, None, 50)}

    def _upsertView(self, asked: Json) -> Json:
        found = asked["id"] or f"report{len(self.reports)}"
        self.reports[found] = asked
        kept = {key: asked[key] for key in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "1", "name": asked["projectName"], "entityName": asked["entityName"]}
        view = {"id": found, **kept, "project": project, "updatedAt": WHEN}
        return {"upsertView": {"view": view, "inserted": asked["id"] is None}}

    def _project(self, name: str) -> Json:
        return {"id": "1", "internalId": "1", "name": name, "entity": {"id": "1", "name": ENTITY}}

    def _place(self, *parts: str) -> str:
        return "/".join([self.url, *(quote(part, safe="") for part in parts)])


def _page(nodes: list[Json], cursor: str | None, size: int) -> Json:
    start = 0 if cursor is None else int(cursor) + 1
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)][start : start + size]
    end = edges[-1]["cursor"] if edges else None
    return {
        "edges": edges,
        "pageInfo": {"__typename": "PageInfo", "endCursor": end, "hasNextPage": start + size < len(nodes)},
    }


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        kind, _, owner = self.path.strip("/").partition("/")
        self._send(self.server.artifacts[owner].manifest if kind == "manifest" else b"{}")

    def do_PUT(self) -> None:
        body = self._body()
        with self.server.lock:
            if self.server.fault is None:
                self.server.store(self.path, body)
        self._send(b"{}")

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        with self.server.lock:
            if self.server.fault is None:
                answer = self._answer(body)
        self._send(json.dumps(answer).encode())

    def _answer(self, body: bytes) -> Json:
        if self.path == "/graphql":
            request = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation = found[1] if found else ""
            self.server.requests[operation] += 1
            return {"data": self.server.answer(operation, request.get("variables") or {})}
        if self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        return {}

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        return gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body

    def _send(self, content: bytes) -> None:
        while self.server.fault == "hang":
            time.sleep(0.05)
        status = self.server.fault if isinstance(self.server.fault, int) else 200
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the length of the block."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.fault = None
        server.shutdown()
