"""A stand-in of the Hugging Face hub on this machine: repositories, commits, large files.

It answers the requests of huggingface_hub as its HTTP API does, and checks what they hold.
"""

import base64
import hashlib
import http.server
import json
import re
import threading

import pytest
import yaml

USERS = {"hf_alice": "alice"}  # By token.
LARGE = 20_000  # Bytes from which a file goes to the large files.
SHA = "5" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Its state, beside a thread that serves it.

    Attributes:
        repositories: {name: {file: bytes}}.
        private: {name: whether it was made private}.
        messages: of the commits.
        large: bytes by their SHA-256, uploaded but not necessarily committed.
        requests: (method, path) in order.
        breaks: whether uploads of large files fail.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.private, self.large = {}, {}, {}
        self.messages, self.requests, self.large_names = [], [], set()
        self.breaks = False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return USERS.get(token)

    def refuses(self, name):
        """Whether the request was answered already: its user may not write there."""
        if self.user is None:
            self.answer({"error": "Invalid username or password."}, 401)
        elif name.split("/")[0] != self.user:
            self.answer({"error": "You don't have the rights"}, 403)
        else:
            return False
        return True

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self):
        self.server.requests.append(("POST", self.path))
        body = self.body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            head = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(head), dict)
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif found := re.fullmatch("/api/models/(.+)/preupload/main", path):
            self.preupload(found[1], json.loads(body))
        elif found := re.fullmatch("/(.+).git/info/lfs/objects/batch", path):
            self.batch(found[1], json.loads(body))
        elif found := re.fullmatch("/api/models/(.+)/commit/main", path):
            self.commit(found[1], list(map(json.loads, body.splitlines())))
        else:
            self.answer({"error": f"no such request: {path}"}, 404)

    def create(self, request):
        name = f"{request['organization']}/{request['name']}"
        if self.refuses(name):
            return
        address = {"url": f"{self.server.address}/{name}"}
        if name in self.server.repositories:
            self.answer({"error": "You already created this model repo"} | address, 409)
            return
        self.server.repositories[name] = {}
        private = request.get("private", request.get("visibility") == "private")
        self.server.private[name] = private
        self.answer(address)

    def preupload(self, name, request):
        if not self.refuses(name):
            self.answer({"files": [{
                "path": file["path"], "shouldIgnore": False,
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
            } for file in request["files"]]})

    def batch(self, name, request):
        assert request["operation"] == "upload" and request["hash_algo"] == "sha256"
        if not self.refuses(name):
            self.answer({"transfer": "basic", "objects": [
                {"oid": each["oid"], "size": each["size"], "actions": {"upload": {
                    "href": f"{self.server.address}/large/{each['oid']}", "header": {}}}}
                for each in request["objects"]
            ]})

    def do_PUT(self):
        self.server.requests.append(("PUT", self.path))
        if self.server.breaks:
            self.answer({"error": "out of space"}, 507)
            return
        content = self.body()
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.large[self.path.rpartition("/")[2]] = content
        self.answer(b"")

    def commit(self, name, lines):
        if self.refuses(name):
            return
        header, *changes = lines
        assert header["key"] == "header"
        self.server.messages.append(header["value"]["summary"])
        for change in changes:
            value = change["value"]
            if change["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert value["algo"] == "sha256" and value["size"] == len(content)
                self.server.large_names.add(value["path"])
            else:
                assert (change["key"], value["encoding"]) == ("file", "base64")
                content = base64.b64decode(value["content"], validate=True)
            self.server.repositories[name][value["path"]] = content
        self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{SHA}", "commitOid": SHA})

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        found = re.fullmatch("/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?", path)
        file = re.fullmatch("/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        stored = self.server.repositories.get((found or file)[1])
        if stored is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif file:
            digest = hashlib.sha256(stored[file[2]]).hexdigest()
            self.answer(stored[file[2]], ETag=f'"{digest}"', X_Repo_Commit=SHA)
        elif found[2] == "tree":
            self.answer([{"type": "file", "path": name, "oid": SHA, "size": len(content)}
                         for name, content in stored.items()])
        else:
            self.answer({"id": found[1], "sha": SHA, "siblings": [
                {"rfilename": name, **self.large_file(name, content)}
                for name, content in stored.items()
            ]})

    def large_file(self, name, content):
        if name not in self.server.large_names:
            return {}
        digest = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return {"size": len(content), "lfs": lfs}

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, for huggingface_hub in this process, with a token of alice."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in {
        "ENDPOINT": server.address, "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
