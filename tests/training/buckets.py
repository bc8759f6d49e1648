"""A bucket of Google Cloud Storage on this machine: as much of its JSON API as gcsfs and tensorstore speak, in memory."""

import base64
import contextlib
import datetime
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Store:
    """name -> (generation, time, bytes) of one bucket."""

    def __init__(self):
        self.files: dict[str, tuple[int, str, bytes]] = {}
        self.generation, self.uploads, self.lock, self.requests = 1000, {}, threading.Lock(), []

    def put(self, name: str, data: bytes, only_if: str | None) -> dict | None:
        """The new file's description; None where `only_if` (a generation, "0" for none there) isn't so."""
        with self.lock:
            if only_if is not None and str(self.files.get(name, (0,))[0]) != only_if:
                return None
            self.generation += 1
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.files[name] = (self.generation, now, data)
        return self.describe(name)

    def describe(self, name: str) -> dict:
        generation, now, data = self.files[name]
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "generation": str(generation), "metageneration": "1",
            "size": str(len(data)), "updated": now, "timeCreated": now, "etag": f"e{generation}",
            "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(), "storageClass": "STANDARD",
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def store(self) -> Store:
        return self.server.store

    def answer(self, status: int, body: bytes | dict = b"", kind: str = "application/json", **headers: str):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def missing(self):
        self.answer(404, {"error": {"code": 404, "message": "No such object"}})

    def do_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.store.requests.append((self.command, self.path))
        if url.path.startswith("/batch/"):
            return self.batch(body)
        if url.path.startswith("/upload/"):
            return self.upload(query, body)
        path = re.sub(r"^/download", "", url.path)
        found = re.fullmatch(r"/storage/v1/b/bucket(?:/o(?:/(.+))?)?", path)
        if not found:
            return self.missing()
        status, answer, headers = self.handle_object(self.command, path, unquote(found[1]) if found[1] else None, query)
        self.answer(status, answer, "application/octet-stream" if isinstance(answer, bytes) else "application/json", **headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_any

    def handle_object(self, method: str, path: str, name: str | None, query: dict) -> tuple[int, bytes | dict, dict]:
        nothing = {"error": {"code": 404, "message": "No such object"}}
        if name is None:
            if not path.endswith("/o"):
                return 200, {"kind": "storage#bucket", "name": "bucket", "location": "X", "storageClass": "STANDARD"}, {}
            return 200, self.listing(query), {}
        if "/rewriteTo/b/bucket/o/" in name or "/copyTo/b/bucket/o/" in name:
            source, target = re.split(r"/(?:rewrite|copy)To/b/bucket/o/", name)
            if source not in self.store.files:
                return 404, nothing, {}
            made = self.store.put(target, self.store.files[source][2], None)
            return 200, {"kind": "storage#rewriteResponse", "done": True, "resource": made}, {}
        if "/moveTo/o/" in name:
            source, target = name.split("/moveTo/o/")
            if source not in self.store.files:
                return 404, nothing, {}
            return 200, self.store.put(target, self.store.files.pop(source)[2], None), {}
        if name not in self.store.files:
            return 404, nothing, {}
        generation, _, data = self.store.files[name]
        if method == "DELETE":
            if query.get("ifGenerationMatch") not in (None, str(generation)):
                return 412, {"error": {"code": 412, "message": "Precondition"}}, {}
            with self.store.lock:
                self.store.files.pop(name, None)
            return 204, b"", {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if query.get("alt") != "media":
            return 200, self.store.describe(name), {}
        headers = {"x_goog_generation": str(generation), "ETag": f"e{generation}"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            return (206, data[start : end + 1], headers) if start <= end else (416, b"", {})
        return 200, data, headers

    def listing(self, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        with self.store.lock:
            names = sorted(self.store.files)
        for name in names:
            if not name.startswith(prefix) or name < query.get("startOffset", "") or name >= query.get("endOffset", "\uffff"):
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                prefixes.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                with contextlib.suppress(KeyError):
                    items.append(self.store.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def upload(self, query: dict, body: bytes):
        if "upload_id" in query:
            name, only_if, parts = self.store.uploads[query["upload_id"]]
            parts.append(body)
            if self.headers.get("Content-Range", "").endswith("/*"):
                return self.answer(308, b"", Range=f"bytes=0-{sum(map(len, parts)) - 1}")
            body = b"".join(parts)
        elif query.get("uploadType") == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = str(len(self.store.uploads))
            self.store.uploads[key] = (name, query.get("ifGenerationMatch"), [])
            return self.answer(200, {}, Location=f"http://{self.headers['Host']}/upload/storage/v1/b/bucket/o?upload_id={key}")
        elif query.get("uploadType") == "multipart":
            boundary = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)[1:3]
            told, body = (part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1] for part in parts)
            body = body.removesuffix(b"\r\n") if body.endswith(b"\r\n") else body.removesuffix(b"\n")
            name, only_if = json.loads(told)["name"], query.get("ifGenerationMatch")
        else:
            name, only_if = query["name"], query.get("ifGenerationMatch")
        only_if = self.headers.get("x-goog-if-generation-match") or only_if
        made = self.store.put(name, body, only_if)
        if made is None:
            return self.answer(412, {"error": {"code": 412, "message": "Precondition Failed"}})
        self.answer(200, made)

    def batch(self, body: bytes):
        boundary = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
        said = []
        for part in body.split(b"--" + boundary)[1:-1]:
            method, path = re.search(rb"\n(DELETE|GET|POST) (\S+) HTTP", part).groups()
            url = urlsplit(path.decode())
            name = re.fullmatch(r"/storage/v1/b/bucket/o/(.+)", url.path)
            status, _, _ = self.handle_object(method.decode(), url.path, unquote(name[1]), {})
            which = re.search(rb"Content-ID: ?(\S+)", part, re.I)
            head = b"Content-Type: application/http\r\nContent-ID: " + (which[1] if which else b"1")
            said.append(head + b"\r\n\r\nHTTP/1.1 %d OK\r\n\r\n" % status)
        text = b"".join(b"--batch_x\r\n" + each + b"\r\n" for each in said) + b"--batch_x--"
        self.answer(200, text, "multipart/mixed; boundary=batch_x")


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256

    def handle_error(self, request, client_address):
        """Clients that hang up are none of ours."""


@contextlib.contextmanager
def served() -> Iterator[tuple[Store, dict[str, str]]]:
    """A store that listens, and the environment variables with which programs find it: gs://bucket/..."""
    server = Server(("127.0.0.1", 0), Handler)
    server.store = Store()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    try:
        yield server.store, {
            "STORAGE_EMULATOR_HOST": here, "TENSORSTORE_GCS_HTTP_URL": here, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GCS": json.dumps({"token": "anon", "endpoint_url": here}), "GOOGLE_AUTH_DISABLED": "1",
        }  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
