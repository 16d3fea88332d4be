"""A web server with ranges on 127.0.0.1, which can answer late, fail, cut its answers and disobey."""

import contextlib
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves the files of a folder.

    Args:
        folder: the folder.
        delay: seconds before each answer.
        fault: function (number of the request, path) -> what is wrong with the answer: None, a status, "cut", "reset",
            "whole" (ignores the range), "more" (endless), "elsewhere" (another range), or "to URL" (redirects).

    Attributes:
        url: address of the folder.
        requests: (path, range) of each request.
    """

    def __init__(self, folder, delay=0.0, fault=lambda number, path: None):
        self.folder, self.delay, self.fault = str(folder), delay, fault
        self.requests, self._lock = [], threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    outer.answer(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler):
        with self._lock:
            number = len(self.requests)
            self.requests.append((handler.path, handler.headers.get("Range")))
        time.sleep(self.delay)
        fault = self.fault(number, handler.path)
        path = os.path.join(self.folder, handler.path.partition("?")[0].lstrip("/"))
        if isinstance(fault, str) and fault.startswith("to "):
            handler.send_response(302)
            handler.send_header("Location", fault[3:])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if isinstance(fault, int) or not os.path.isfile(path):
            handler.send_response(fault or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "reset":
            handler.close_connection = True
            handler.connection.close()
            return
        size = os.path.getsize(path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        if fault == "elsewhere":
            first, last = first + 1, min(last + 1, size - 1)
        with open(path, "rb") as file:
            if fault == "whole":
                content = file.read()
            else:
                file.seek(first)
                content = file.read(last - first + 1)
        handler.send_response(200 if fault == "whole" else 206)
        handler.send_header("ETag", f'"{size}-{os.stat(path).st_mtime_ns}"')
        if fault != "whole":
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if fault == "more":
            handler.close_connection = True
            handler.end_headers()
            for _ in range(64):
                handler.wfile.write(b"x" * (1 << 20))
            return
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
            handler.close_connection = True
        handler.wfile.write(content)
