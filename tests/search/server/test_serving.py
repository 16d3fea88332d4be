"""The server as a process: its address and token, slow clients, and what is there after it was killed."""

import http.client
import json
import multiprocessing
import os
import re
import socket

import pytest
from colour_library import build_clip, build_library

from keras_clip.search import Classes, PictureIndex
from keras_clip.search.server import serve, serving

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the server is forked, which spares it the start of Keras"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    build_library(folder, 6).close()
    return folder / "index"


@pytest.fixture(scope="module")
def clip():
    return build_clip()


def _serve(pipe, folder, clip, options):
    # The embedder is not called in this process: TensorFlow's threads have not come along.
    PictureIndex.require_model = lambda self, clip: None
    serving._HEADER_SECONDS = 0.3
    serve(folder, clip, port=0, report=pipe.send, **options)


@pytest.fixture
def started(folder, clip):
    processes = []

    def start(**options):
        """Returns the process, its port and the line with its address."""
        mine, other = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(other, folder, clip, options))
        process.start()
        processes.append(process)
        other.close()
        assert mine.recv() == f"6 pictures of {folder}"
        address = mine.recv()
        return process, int(re.search(r":(\d+)/", address)[1]), address

    yield start
    for process in processes:
        process.kill()
        process.join()


def request(port, method, path, body=None, headers=None):
    # The port is open before the server answers, so that a client waits and is not refused.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), {**kind, **(headers or {})})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_three_kills_lose_nothing_that_was_answered(folder, started):
    classes = Classes(folder)
    with PictureIndex.open(folder) as index:
        digests = [index.picture(number).sha256 for number in range(6)]
    for kill in range(3):
        process, port, address = started()
        assert address == f"Open http://localhost:{port}/"
        status, made = request(port, "POST", "/api/classes", {"name": f"class {kill}"})
        assert status == 201
        class_id = json.loads(made)["id"]
        for picture in range(6):
            fields = {"pictures": [picture], "class": class_id, "value": bool(picture % 2)}
            assert request(port, "POST", "/api/labels", fields)[0] == 200
        process.kill()
        process.join()
        assert len(classes.all()) == kill + 1
        labels = classes.by_hand(class_id)
        assert [labels[digest] for digest in digests] == [bool(picture % 2) for picture in range(6)]
    classes.close()


def test_slow_clients_are_let_go_and_idle_ones_are_not(started):
    _, port, _ = started()
    assert request(port, "GET", "/api/index")[0] == 200
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    idle.request("GET", "/api/index")
    idle.getresponse().read()
    for begun in (b"", b"GET / HTTP/1.1\r\nHost: local"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(begun)
            # The server closes the connection.
            assert slow.recv(1) == b""
    idle.request("GET", "/api/index")
    assert idle.getresponse().status == 200
    idle.close()


def test_elsewhere_a_token_is_made(started):
    _, port, address = started(host="0.0.0.0", allow_hosts=["pictures.home"])
    token = re.fullmatch(rf"Open http://localhost:{port}/\?token=([\w-]{{32}})", address)[1]
    assert request(port, "GET", "/api/index")[0] == 401
    allowed = {"Authorization": f"Bearer {token}"}
    for host, status in {"pictures.home": 200, "10.0.0.5:80": 200, "evil.example": 403}.items():
        assert request(port, "GET", "/api/index", headers={**allowed, "Host": host})[0] == status


def test_what_is_refused_at_the_start(folder, clip, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="must be an index"):
        serve(tmp_path, clip, port=0)
    for token in ("short", "x" * 15, "with space in the midst", "ü" * 20, ""):
        with pytest.raises(ValueError, match="A token must have"):
            serve(folder, clip, port=0, token=token)
    with pytest.raises(ValueError, match="by a model in memory"):
        serve(folder, port=0)
    with pytest.raises(ValueError, match="both towers"):
        serve(folder, clip.image_embedder, port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="Choose another with --port"):
            serve(folder, clip, port=taken.getsockname()[1])
    with pytest.raises(OSError, match="Cannot listen on 203.0.113.7"):
        serve(folder, clip, host="203.0.113.7", port=0, token="x" * 20)
