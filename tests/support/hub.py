"""A stand-in for the Hub on loopback: what huggingface_hub asks of it to upload and to download.

    python hub.py FOLDER

Prints its port. Repositories are folders below FOLDER; FOLDER/requests lists what was asked, and
while FOLDER/broken exists, uploads of large files fail.
"""

import base64
import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(sys.argv[1])
COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        with (ROOT / "requests").open("a", encoding="utf-8") as file:
            file.write(f"{self.command} {self.path}\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path).split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            folder = ROOT / owner / asked["name"]
            exists = folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            (ROOT / "created").write_text(body.decode(), encoding="utf-8")
            name = f"{owner}/{asked['name']}"
            self._json({"url": f"{self._self()}/{name}", "name": name}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if _is_large(each["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(path.split("/")[3:5], each["path"]),
                }
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)
            objects = []
            for each in asked["objects"]:
                found: dict[str, object] = {"oid": each["oid"], "size": each["size"]}
                if not (ROOT / "lfs" / each["oid"]).exists():
                    found["actions"] = {
                        "upload": {"href": f"{self._self()}/lfs/{each['oid']}"},
                        "verify": {"href": f"{self._self()}/verify"},
                    }
                objects.append(found)
            self._json(
                {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json"
            )
        elif path == "/verify":
            self._json({})
        elif "/commit/" in path:
            folder = ROOT.joinpath(*path.split("/")[3:5])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    self._write(folder / value["path"], base64.b64decode(value["content"]))
                elif entry["key"] == "lfsFile":
                    held = (ROOT / "lfs" / value["oid"]).read_bytes()
                    self._write(folder / value["path"], held)
                elif entry["key"] == "deletedFile":
                    (folder / value["path"]).unlink()
            name = "/".join(path.split("/")[3:5])
            url = f"{self._self()}/{name}/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT})
        else:
            self._json({"error": path}, 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if (ROOT / "broken").exists():
            self._json({"error": "out of order"}, 400)
            return
        oid = self.path.split("/")[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self._write(ROOT / "lfs" / oid, body)
        self._json({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path).split("?")[0]
        of_model = re.fullmatch(r"/api/models/([^/]+)/([^/]+)(/revision/[^/]+)?", path)
        of_tree = re.fullmatch(r"/api/models/([^/]+)/([^/]+)/tree/.*", path)
        of_file = re.fullmatch(r"/([^/]+)/([^/]+)/resolve/[^/]+/(.+)", path)
        if of_model and ROOT.joinpath(*of_model.groups()[:2]).is_dir():
            owner, name, _ = of_model.groups()
            folder = ROOT / owner / name
            files = [{"rfilename": str(each.relative_to(folder))} for each in _files(folder)]
            self._json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": files, "tags": []})
        elif of_tree and ROOT.joinpath(*of_tree.groups()).is_dir():
            folder = ROOT.joinpath(*of_tree.groups())
            self._json(
                [
                    {
                        "type": "file",
                        "path": str(each.relative_to(folder)),
                        "size": each.stat().st_size,
                        "oid": hashlib.sha1(each.read_bytes()).hexdigest(),
                    }
                    for each in _files(folder)
                ]
            )
        elif of_file and ROOT.joinpath(*of_file.groups()).is_file():
            body = ROOT.joinpath(*of_file.groups()).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            self.send_response(206 if asked else 200)
            if asked:
                first, last = int(asked[1]), min(int(asked[2]), len(body) - 1)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
                body = body[first : last + 1]
            self.send_header("X-Repo-Commit", COMMIT)
            whole = ROOT.joinpath(*of_file.groups()).read_bytes()
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
            with (ROOT / "sent").open("a", encoding="utf-8") as file:
                file.write(f"{len(body) * (self.command == 'GET')} {path}\n")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
        else:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _oid(self, repository: list[str], name: str) -> str | None:
        path = ROOT.joinpath(*repository, name)
        if not path.exists():
            return None
        body = path.read_bytes()
        if _is_large(name):
            return hashlib.sha256(body).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    def _self(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _json(
        self,
        content: object,
        status: int = 200,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_address[1], flush=True)
    server.serve_forever()
