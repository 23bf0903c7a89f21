"""The W&B test server's GraphQL: every field that the SDK asks for, as dicts of what the server keeps."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from tests.servers.graphql import Node, connection
from tests.servers.wandb_record import ENTITY, Artifact, Record, Run

NOW = "2026-01-01T00:00:00"
NO_FEATURES: list[Node] = []


class Api:
    """Reads and changes a record as GraphQL asks.

    Args:
        record: What is kept.
        url: The server's address.
    """

    def __init__(self, record: Record, url: str) -> None:
        self._record = record
        self._url = url

    def root(self, kind: str) -> Node:
        """The fields at the top of a query or a mutation."""
        if kind == "mutation":
            changes = (each for each in dir(self) if each.startswith("change_"))
            return {_camel(each.removeprefix("change_")): getattr(self, each) for each in changes}
        return {
            "viewer": self._viewer(),
            "serverInfo": {"features": NO_FEATURES, "cliVersionInfo": {}, "latestLocalVersionInfo": None},
            "entity": lambda name: self._entity(),
            "organization": lambda name: None,
            "project": lambda entityName, name: self._project(name),
            "model": lambda entityName, name: self._project(name),
            "models": lambda entityName, first=50, after=None, order=None: connection(
                [self._project(name) for name in sorted(self._projects())], first, after
            ),
            "artifact": lambda id: self._artifact(self._record.artifacts.get(id)),
            "clientIDMapping": lambda clientID: None,
        }

    def _projects(self) -> set[str]:
        return {project for project, _ in self._record.runs} | {
            each.project for each in self._record.artifacts.values()
        }

    def _viewer(self) -> Node:
        teams = connection([{"__typename": "Entity", "name": ENTITY}])
        return {
            "__typename": "User", "id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "flags": "{}",
            "email": "t@example.org", "teams": teams, "admin": False, "deletedAt": None, "apiKeys": connection([]),
        }  # fmt: skip

    def _entity(self) -> Node:
        return {
            "__typename": "Entity", "id": ENTITY, "name": ENTITY, "organization": None, "isTeam": True, "user": None,
            "xxhashDigestsEnabled": False,
        }  # fmt: skip

    def _project(self, name: str) -> Node | None:
        if name not in self._projects():
            return None
        return self._project_node(name)

    def _project_node(self, name: str) -> Node:
        return {
            "__typename": "Project", "id": f"project {name}", "internalId": f"internal {name}", "name": name,
            "entityName": ENTITY, "entity": self._entity(), "createdAt": NOW, "isBenchmark": False, "readOnly": False,
            "bucket": lambda missingOk=False, **names: self._run(self._runs(name, names["name"])),
            "artifact": lambda **names: (self._membership(name, names["name"]) or {}).get("artifact"), "user": None,
            "run": lambda **names: self._run(self._runs(name, names["name"])),
            "artifactType": lambda **names: self._type(name, names["name"]),
            "artifactCollection": lambda **names: self._collection(name, names["name"]),
            "artifactCollectionMembership": lambda **names: self._membership(name, names["name"]),
        }  # fmt: skip

    def _runs(self, project: str, name: str) -> Run | None:
        return self._record.runs.get((project, name))

    def _run(self, run: Run | None) -> Node | None:
        if run is None:
            return None
        return {
            "__typename": "Run", "id": run.name, "name": run.name, "displayName": run.display_name, "notes": None,
            "description": None, "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0, "tags": [],
            "state": run.state,
            "historyTail": json.dumps([json.dumps(each) for each in run.history[-1:]]), "eventsTail": "[]",
            "wandbConfig": lambda keys: "{}", "sweepName": None, "project": self._project_node(run.project),
        }  # fmt: skip

    def _type(self, project: str, name: str) -> Node:
        def collections(first: int = 50, after: str | None = None, **_: Any) -> Node:
            named = {a.collection for a in self._record.artifacts.values() if (a.project, a.type) == (project, name)}
            return connection([self._collection_node(project, each, name) for each in sorted(named)], first, after)

        def collection(**names: Any) -> Node | None:
            found = self._collection(project, names["name"])
            return found if found is not None and found["type_name"] == name else None

        return {
            "__typename": "ArtifactType", "id": f"type {name}", "name": name, "description": None, "createdAt": NOW,
            "artifactCollections": collections, "artifactCollection": collection,
        }  # fmt: skip

    def _collection(self, project: str, name: str) -> Node | None:
        versions = self._record.versions(project, name)
        return self._collection_node(project, name, versions[0].type) if versions else None

    def _collection_node(self, project: str, name: str, kind: str) -> Node:
        def artifacts(first: int = 50, after: str | None = None, **_: Any) -> Node:
            start, found = int(after or 0), self._record.versions(project, name)
            page = [self._artifact(each) or {} for each in found[start : start + first]]
            return connection([{}] * start + page + [{}] * (len(found) - start - len(page)), first, after)

        return {
            "__typename": "ArtifactSequence", "id": f"collection {name}", "name": name, "description": None,
            "createdAt": NOW, "updatedAt": NOW, "project": self._project_node(project), "type_name": kind,
            "defaultArtifactType": {"__typename": "ArtifactType", "name": kind}, "tags": connection([]),
            "artifacts": artifacts, "digestAlgorithm": "MANIFEST_MD5", "state": "READY",
            "artifactMembership": lambda aliasName: self._membership(project, f"{name}:{aliasName}"),
        }  # fmt: skip

    def _membership(self, project: str, name: str) -> Node | None:
        collection, _, alias = name.partition(":")
        for each in self._record.versions(project, collection):
            if alias in each.aliases or alias == f"v{each.version}":
                return {
                    "__typename": "ArtifactCollectionMembership", "id": f"member {each.id}", "createdAt": NOW,
                    "versionIndex": each.version, "aliases": self._aliases(each), "artifact": self._artifact(each),
                    "artifactCollection": self._collection(project, collection), "files": self._files(each),
                }  # fmt: skip
        return None

    def _aliases(self, artifact: Artifact) -> list[Node]:
        collection = {
            "__typename": "ArtifactSequence", "name": artifact.collection,
            "project": self._project_node(artifact.project),
        }  # fmt: skip
        return [
            {"__typename": "ArtifactAlias", "id": f"alias {each}", "alias": each, "artifactCollection": collection}
            for each in sorted(artifact.aliases)
        ]

    def _artifact(self, artifact: Artifact | None) -> Node | None:
        if artifact is None:
            return None
        collection = {
            "__typename": "ArtifactSequence", "id": f"collection {artifact.collection}", "name": artifact.collection,
            "project": self._project_node(artifact.project),
            "latestArtifact": lambda: self._latest(artifact),
        }  # fmt: skip
        return {
            "__typename": "Artifact", "id": artifact.id, "versionIndex": artifact.version, "state": artifact.state,
            "artifactSequence": collection, "artifactType": {"__typename": "ArtifactType", "name": artifact.type},
            "description": artifact.description, "metadata": artifact.metadata, "ttlDurationSeconds": -1,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "size": artifact.size, "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5", "commitHash": artifact.id, "fileCount": len(artifact.files),
            "createdAt": artifact.created, "updatedAt": NOW, "aliases": self._aliases(artifact),
            "files": self._files(artifact),
            "currentManifest": {"file": {"directUrl": f"{self._url}/storage/{artifact.id}/wandb_manifest.json"}},
            "edge": {"version": f"v{artifact.version}"},
        }  # fmt: skip

    def _latest(self, artifact: Artifact) -> Node | None:
        for each in self._record.versions(artifact.project, artifact.collection):
            return {"__typename": "Artifact", "id": each.id, "versionIndex": each.version}
        return None

    def _files(self, artifact: Artifact) -> Any:
        def files(names: list[str] | None = None, first: int = 50, after: str | None = None) -> Node:
            found = [name for name in sorted(artifact.files) if not names or name in names]
            return connection([self._file(artifact, name) for name in found], first, after)

        return files

    def _file(self, artifact: Artifact, name: str) -> Node:
        url = f"{self._url}/storage/{artifact.id}/{quote(name)}"
        return {
            "__typename": "File", "id": name, "name": name, "displayName": name, "directUrl": url, "url": "",
            "sizeBytes": len(artifact.files[name]), "storagePath": name, "mimetype": "", "updatedAt": NOW, "digest": "",
            "md5": "",
        }  # fmt: skip

    def change_upsert_bucket(self, input: dict[str, Any]) -> Node:
        run, new = self._record.open_run(input.get("modelName") or "uncategorized", input.get("name"))
        run.display_name = input.get("displayName") or run.display_name or run.name
        if input.get("config"):
            run.config |= json.loads(input["config"])
        run.state = "running"
        return {"bucket": self._run(run), "inserted": new}

    def change_create_run_files(self, input: dict[str, Any]) -> Node:
        run = self._record.runs[input["projectName"], input["runName"]]

        def upload(name: str) -> str:
            return f"{self._url}/storage/{self._record.upload(lambda data: run.files.__setitem__(name, data))}"

        files = [{"__typename": "File", "name": name, "uploadUrl": upload(name)} for name in input["files"]]
        return {"runID": run.name, "uploadHeaders": [], "files": files}

    def change_mark_run_files_uploaded(self, input: dict[str, Any]) -> Node:
        return {"success": True}

    def change_create_artifact(self, input: dict[str, Any]) -> Node:
        return {"__typename": "CreateArtifactPayload", "artifact": self._artifact(self._record.create(input))}

    def change_create_artifact_manifest(self, input: dict[str, Any]) -> Node:
        artifact = self._record.artifacts[input["artifactID"]]
        key = self._record.upload(lambda data: setattr(artifact, "manifest", data))
        file = {"id": f"manifest {artifact.id}", "uploadUrl": f"{self._url}/storage/{key}", "uploadHeaders": []}
        return {"artifactManifest": {"id": f"manifest {artifact.id}", "file": file}}

    def change_update_artifact_manifest(self, input: dict[str, Any]) -> Node:
        artifact = self._record.artifacts[input["artifactManifestID"].removeprefix("manifest ")]
        return self.change_create_artifact_manifest({"artifactID": artifact.id})

    def change_create_artifact_files(self, input: dict[str, Any]) -> Node:
        def node(wanted: dict[str, Any]) -> Node:
            artifact = self._record.artifacts[wanted["artifactID"]]
            name = wanted["name"]
            key = self._record.upload(lambda data: artifact.files.__setitem__(name, data))
            return {
                "__typename": "File", "id": name, "name": name, "displayName": name, "storagePath": key,
                "uploadUrl": f"{self._url}/storage/{key}", "uploadHeaders": [], "uploadMultipartUrls": None,
                "artifact": {"id": artifact.id},
            }  # fmt: skip

        return {"files": connection([node(each) for each in input["artifactFiles"]])}

    def change_commit_artifact(self, input: dict[str, Any]) -> Node:
        artifact = self._record.artifacts[input["artifactID"]]
        if artifact.state == "PENDING":
            self._record.commit(artifact)
        return {"artifact": self._artifact(artifact)}

    def change_update_artifact(self, input: dict[str, Any]) -> Node:
        artifact = self._record.artifacts[input["artifactID"]]
        artifact.metadata = input.get("metadata") or artifact.metadata
        return {"artifact": self._artifact(artifact)}

    def change_add_aliases(self, input: dict[str, Any]) -> Node:
        self._record.alias(self._record.artifacts[input["artifactID"]], [each["alias"] for each in input["aliases"]])
        return {"success": True}

    def change_delete_aliases(self, input: dict[str, Any]) -> Node:
        self._record.artifacts[input["artifactID"]].aliases -= {each["alias"] for each in input["aliases"]}
        return {"success": True}

    def change_delete_artifact(self, input: dict[str, Any]) -> Node:
        artifact = self._record.artifacts[input["artifactID"]]
        node = self._artifact(artifact)
        if artifact.aliases - {"latest"} and not input.get("deleteAliases"):
            raise PermissionError("the version has aliases")
        self._record.delete(artifact)
        return {"artifact": node}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)
