"""A local server with the protocol of the Hugging Face hub: digests, redirects, ranges, and simulated failures."""

import contextlib
import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The files of the server, and the failures that it simulates.

    Attributes:
        files: {(repository, filename): content}. Files of more than 10,000 bytes are kept behind a redirect.
        gated: repositories that need a login.
        failing: how many of the next requests end with `status`.
        status: the HTTP status of these requests. After 503, clients try again.
        cut: how many of the next downloads break off a megabyte before the end.
        spoilt: whether contents are sent with a wrong byte.
        log: "METHOD path range" of every request.
    """

    files: dict = field(default_factory=dict)
    gated: set = field(default_factory=set)
    failing: int = 0
    status: int = 503
    cut: int = 0
    spoilt: bool = False
    log: list = field(default_factory=list)
    url: str = ""

    def add(self, repository, directory):
        for path in directory.iterdir():
            self.files[repository, path.name] = path.read_bytes()


@contextlib.contextmanager
def serve():
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Prints nothing: `Hub.log` records the requests."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.hub
        if self.path.startswith("/api/"):
            return self.reply(404, b"")
        hub.log.append(" ".join(filter(None, (self.command, self.path, self.headers.get("Range")))))
        if hub.failing:
            hub.failing -= 1
            return self.reply(hub.status, b"later")
        if match := re.fullmatch(r"/stored/(\w+)", self.path):
            stored = {hashlib.sha256(content).hexdigest(): (key[1], content) for key, content in hub.files.items()}
            filename, content = stored[match[1]]
            return self.send(content, {"Content-Disposition": f'inline; filename="{filename}";'})
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", self.path)
        if match is None:
            return self.reply(404, b"")
        repository, revision, filename = match.groups()
        if repository in hub.gated:
            return self.reply(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if all(repository != known for known, _ in hub.files):
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        content = hub.files.get((repository, filename))
        headers = {"X-Repo-Commit": COMMIT}
        if content is None:
            return self.reply(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        if len(content) > 10_000:
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            # Like the hub, redirects to another host: clients use the headers of this response.
            elsewhere = hub.url.replace("127.0.0.1", "localhost")
            return self.reply(302, b"", {**headers, "Location": f"{elsewhere}/stored/{digest}"})
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self.send(content, {**headers, "ETag": f'"{digest}"'})

    def send(self, content, headers=None):
        headers, status = {"Accept-Ranges": "bytes", **(headers or {})}, 200
        if self.hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, size = int(match[1]), len(content)
            content, status = content[start : int(match[2]) + 1 if match[2] else None], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{size}"
        self.reply(status, content, headers)

    def reply(self, status, content, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut and len(content) > 10_000:
            self.hub.cut -= 1
            # The client writes its data in blocks of ten megabytes.
            self.wfile.write(content[:-1_000_000])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(content)
