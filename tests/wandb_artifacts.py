"""What a W&B server says of artifacts: versions, aliases and the files they are made of."""

from collections.abc import Callable
from typing import Any

from tests.wandb_store import Document, Store

_CREATED = "2024-01-01T00:00:00Z"
_NO_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


class ArtifactAnswers:
    """Answers what concerns artifacts.

    Within a collection a version is what has a digest of its own, and an alias stands at one.
    """

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url

    def answers(self) -> dict[str, Callable[[Document], Document]]:
        """What is answered, by the names of the operations."""
        return {
            "XXHashDigestsEnabled": lambda _: {"entity": {"xxhashDigestsEnabled": False}},
            "FetchArtifactDigestAlgorithm": lambda _: {"project": None},
            "CreateArtifact": self._create,
            "CreateArtifactManifest": self._create_manifest,
            "UpdateArtifactManifest": self._update_manifest,
            "CreateArtifactFiles": self._create_files,
            "CommitArtifact": self._commit,
            "UseArtifact": self._use,
            "ClientIDMapping": self._client_id,
            "AddAliases": self._add_aliases,
            "DeleteAliases": self._delete_aliases,
            "UpdateArtifact": self._update,
            "ArtifactByID": self._by_id,
            "ArtifactMembershipByName": self._by_name,
            "ArtifactType": self._type,
            "RunOutputArtifacts": self._outputs,
            "FetchArtifactManifest": self._manifest,
            "ArtifactManifest": self._manifest,
        }

    def _create(self, asked: Document) -> Document:
        given = asked["input"]
        names = given.get("artifactCollectionName") or given["artifactCollectionNames"][0]
        collection = f"{given['entityName']}/{given['projectName']}/{names}"
        versions = self._store.artifacts_of(collection)
        same = [
            one
            for one in versions
            if one["digest"] == given["digest"] and one["state"] == "COMMITTED"
        ]
        artifact = same[-1] if same else self._new(given, collection, len(versions))
        if client_id := given.get("clientID"):
            self._store.put("client", client_id, {"id": artifact["id"]})
        aliases = [one["alias"] for one in given.get("aliases") or []]
        if same:
            self._point(artifact, collection, aliases)
            self._note_output(artifact, given)
        else:
            self._store.put("artifact", artifact["id"], artifact | {"asked_aliases": aliases})
        latest = [one for one in versions if one["state"] == "COMMITTED"][-1:]
        sequence = {
            "id": collection,
            "latestArtifact": {k: latest[0][k] for k in ("id", "versionIndex")} if latest else None,
        }
        about = {"id": artifact["id"], "state": artifact["state"], "digest": artifact["digest"]}
        return {"createArtifact": {"artifact": about | {"artifactSequence": sequence}}}

    def _new(self, given: Document, collection: str, number: int) -> Document:
        return {
            "id": f"{collection}/{number}", "collection": collection, "digest": given["digest"],
            "type": given["artifactTypeName"], "metadata": given.get("metadata") or "{}",
            "description": given.get("description"), "state": "PENDING", "versionIndex": None,
            "aliases": [], "runs": [_run_of(given)], "historyStep": given.get("historyStep"),
        }  # fmt: skip

    def _note_output(self, artifact: Document, given: Document) -> None:
        artifact["runs"] = list(dict.fromkeys([*artifact["runs"], _run_of(given)]))
        self._store.put("artifact", artifact["id"], artifact)

    def _create_manifest(self, asked: Document) -> Document:
        artifact = self._artifact(asked["artifactID"])
        artifact["manifest"] = f"{artifact['id']}/{asked['name']}"
        self._store.put("artifact", artifact["id"], artifact)
        return {"createArtifactManifest": self._manifest_file(artifact["manifest"])}

    def _update_manifest(self, asked: Document) -> Document:
        return {"updateArtifactManifest": self._manifest_file(asked["artifactManifestID"])}

    def _manifest_file(self, name: str) -> Document:
        url = f"{self._url}/upload/manifests/{name}"
        file = {"id": name, "uploadUrl": url, "uploadHeaders": []}
        return {"artifactManifest": {"id": name, "file": file}}

    def _create_files(self, asked: Document) -> Document:
        edges = []
        for file in asked.get("artifactFiles") or asked["input"]["artifactFiles"]:
            path = f"artifacts/{file['artifactID']}/{file['name']}"
            node = {
                "storagePath": path, "uploadUrl": f"{self._url}/upload/{path}",
                "uploadHeaders": [], "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit(self, asked: Document) -> Document:
        artifact = self._artifact(asked["artifactID"])
        if artifact["state"] != "COMMITTED":
            versions = self._store.artifacts_of(artifact["collection"])
            artifact["versionIndex"] = sum(one["state"] == "COMMITTED" for one in versions)
            artifact["state"] = "COMMITTED"
            self._store.put("artifact", artifact["id"], artifact)
            aliases = [*artifact.pop("asked_aliases", []), "latest"]
            artifact = self._point(artifact, artifact["collection"], aliases)
        return {"commitArtifact": {"artifact": {k: artifact[k] for k in ("id", "digest")}}}

    def _point(self, artifact: Document, collection: str, aliases: list[str]) -> Document:
        """Let aliases of a collection stand at this version, and at no other."""
        for other in self._store.artifacts_of(collection):
            left = [alias for alias in other["aliases"] if alias not in aliases]
            if left != other["aliases"]:
                self._store.put("artifact", other["id"], other | {"aliases": left})
        artifact["aliases"] = list(dict.fromkeys([*artifact["aliases"], *aliases]))
        return self._store.put("artifact", artifact["id"], artifact)

    def _add_aliases(self, asked: Document) -> Document:
        given = asked["input"]
        artifact = self._artifact(given["artifactID"])
        self._point(artifact, artifact["collection"], [one["alias"] for one in given["aliases"]])
        return {"result": {"success": True}}

    def _delete_aliases(self, asked: Document) -> Document:
        given = asked["input"]
        artifact = self._artifact(given["artifactID"])
        gone = {one["alias"] for one in given["aliases"]}
        artifact["aliases"] = [alias for alias in artifact["aliases"] if alias not in gone]
        self._store.put("artifact", artifact["id"], artifact)
        return {"result": {"success": True}}

    def _update(self, asked: Document) -> Document:
        given = asked.get("input") or asked
        artifact = self._artifact(given["artifactID"])
        fields = {k: given[k] for k in ("metadata", "description") if given.get(k) is not None}
        artifact = self._store.put("artifact", artifact["id"], artifact | fields)
        answer = {"artifact": self._node(artifact)}
        return {"result": answer, "updateArtifact": answer}

    def _use(self, asked: Document) -> Document:
        return {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}}

    def _client_id(self, asked: Document) -> Document:
        known = self._store.get("client", asked["clientID"])
        return {"clientIDMapping": known and {"serverID": known["id"]}}

    def _by_id(self, asked: Document) -> Document:
        found = self._store.get("artifact", asked["id"])
        return {"artifact": found and self._node(found)}

    def _by_name(self, asked: Document) -> Document:
        found = self._named(asked)
        membership = found and {
            "__typename": "ArtifactCollectionMembership", "id": found["id"],
            "versionIndex": found["versionIndex"], "createdAt": _CREATED,
            "aliases": [_alias(found, alias) for alias in found["aliases"]],
            "artifactCollection": _collection(found), "artifact": self._node(found),
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": membership}}

    def _type(self, asked: Document) -> Document:
        found = self._named(asked)
        return {"project": {"artifact": found and {"artifactType": {"name": found["type"]}}}}

    def _named(self, asked: Document) -> Document | None:
        name, _, alias = asked["name"].partition(":")
        for one in self._store.artifacts_of(f"{asked['entity']}/{asked['project']}/{name}"):
            if (alias or "latest") in (*one["aliases"], f"v{one['versionIndex']}"):
                return one
        return None

    def _outputs(self, asked: Document) -> Document:
        run = f"{asked['entity']}/{asked['project']}/{asked['run']}"
        found = [one for one in self._store.all("artifact") if run in one["runs"]]
        edges = [{"node": self._node(one)} for one in found if one["state"] == "COMMITTED"]
        artifacts = {"totalCount": len(edges), "pageInfo": _NO_PAGE, "edges": edges}
        return {"project": {"run": {"artifacts": artifacts}}}

    def _manifest(self, asked: Document) -> Document:
        artifact = self._artifact(asked.get("id") or asked["artifact_id"])
        url = f"{self._url}/upload/manifests/{artifact['manifest']}"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _artifact(self, name: str) -> Document:
        found = self._store.get("artifact", name)
        assert found is not None, f"no artifact {name}"
        return found

    def _node(self, artifact: Document) -> Document:
        contents: dict[str, Any] = self._store.manifest_of(artifact)
        return {
            "__typename": "Artifact", "id": artifact["id"],
            "artifactSequence": _collection(artifact), "versionIndex": artifact["versionIndex"],
            "artifactType": {"name": artifact["type"]}, "description": artifact["description"],
            "metadata": artifact["metadata"], "ttlDurationSeconds": -2, "ttlIsInherited": True,
            "tags": [], "historyStep": artifact["historyStep"], "state": artifact["state"],
            "size": sum(one.get("size", 0) for one in contents.values()),
            "digest": artifact["digest"], "digestAlgorithm": None, "commitHash": "",
            "fileCount": len(contents), "createdAt": _CREATED, "updatedAt": None,
            "aliases": [
                _alias(artifact, alias) | {"artifactCollection": _collection(artifact)}
                for alias in artifact["aliases"]
            ],
        }  # fmt: skip


def _run_of(given: Document) -> str:
    return f"{given['entityName']}/{given['projectName']}/{given.get('runName')}"


def _alias(artifact: Document, alias: str) -> Document:
    return {"__typename": "ArtifactAlias", "id": f"{artifact['id']}:{alias}", "alias": alias}


def _collection(artifact: Document) -> Document:
    entity, project, name = artifact["collection"].split("/", 2)
    of_project = {"id": project, "internalId": "1", "name": project, "entity": {"name": entity}}
    return {"__typename": "ArtifactSequence", "id": name, "name": name, "project": of_project}
