"""What the server refuses: strangers' pages, wrong names, paths, bodies, fields and pictures; and how it answers."""

import contextlib
import io
import json
import os
import struct
import zlib

import pytest
from colour_library import build_library
from PIL import Image
from starlette.testclient import TestClient

from keras_clip.search.pictures.reading import OutsideOfRoot, open_inside
from keras_clip.search.server import create_application
from keras_clip.search.server.guard import HEADERS
from keras_clip.search.server.requests import MAX_JSON
from keras_clip.search.server.routes import MAX_UPLOAD, disposition

pytestmark = pytest.mark.backend_free
BASE = "http://127.0.0.1:8300"
TOKEN = "a-token-of-a-test-123"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = build_library(tmp_path_factory.mktemp("security"), 8)
    yield library
    library.close()


@contextlib.contextmanager
def client_of(library, base=BASE, **options):
    # Without the block of the client the threads of the application would end with the first of them.
    client = TestClient(create_application(library, **options), base_url=base, raise_server_exceptions=False)
    with client:
        yield client


@pytest.fixture(scope="module")
def client(library):
    with client_of(library) as client:
        yield client


def refused(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    return error["message"]


# Names of the server, and how others are told apart.


@pytest.mark.parametrize("host", ["127.0.0.1:8300", "localhost:8300", "LocalHost", "[::1]:8300", "127.0.0.1"])
def test_own_names(client, host):
    assert client.get("/api/index", headers={"Host": host}).status_code == 200


HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:8300",
    "127.0.0.1@evil.example",
    "",
    "0.0.0.0",
]
HOSTS += ["192.168.1.5:8300", "localhost:99999999", "localhost/x", "[::1", "evil.example#localhost", "localhost."]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/", "/api/index", "/pictures/0/file", "/api/nothing"])
def test_names_that_were_made_to_point_here(client, host, path):
    refused(client.get(path, headers={"Host": host}), 403, "bad_host")


def test_any_address_lets_addresses_in_and_no_names(library):
    with client_of(library, any_address=True) as client:
        for host, status in {"192.168.1.5:8300": 200, "[fe80::1]": 200, "evil.example": 403, "1.evil": 403}.items():
            assert client.get("/api/index", headers={"Host": host}).status_code == status


ORIGINS = [
    "http://evil.example",
    "null",
    "http://127.0.0.1:9999",
    "https://127.0.0.1:8300",
    "http://localhost:8300",
    "",
]
CHANGES = [
    ("POST", "/api/search"),
    ("POST", "/api/labels"),
    ("POST", "/api/uploads"),
    ("POST", "/api/classes"),
    ("PATCH", "/api/classes/1"),
    ("DELETE", "/api/classes/1"),
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("method, path", CHANGES)
def test_pages_of_others_change_nothing(client, method, path, origin):
    refused(client.request(method, path, json={}, headers={"Origin": origin}), 403, "bad_origin")


def test_the_own_page_may(client):
    for headers in ({"Origin": BASE}, {"Origin": BASE, "Sec-Fetch-Site": "same-origin"}, {}):
        assert client.post("/api/search", json={}, headers=headers).status_code == 200
    refused(client.post("/api/search", json={}, headers={"Sec-Fetch-Site": "cross-site"}), 403, "bad_origin")


def test_forms_are_no_json(client):
    # What another page can send without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = client.post("/api/labels", content=b"{}", headers={"Content-Type": kind})
        refused(response, 415, "not_json")


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
def test_other_methods(client, method):
    refused(client.request(method, "/api/index"), 405, "bad_method")


def test_methods_that_a_route_does_not_have(client):
    refused(client.post("/api/index"), 405, "bad_method")
    refused(client.delete("/pictures/0/file"), 405, "bad_method")
    refused(client.get("/api/search"), 405, "bad_method")
    assert client.get("/api/index/").status_code == 404


@pytest.mark.parametrize("path", ["/", "/api/index", "/pictures/0/thumbnail", "/nothing", "/api/pictures/99"])
def test_every_answer_has_the_headers(client, path):
    response = client.get(path)
    for name, value in HEADERS.items():
        assert response.headers[name] == value
    assert "unsafe-inline" not in response.headers["content-security-policy"]
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_unexpected_errors_have_the_headers_and_tell_nothing(client, library, monkeypatch):
    def fails():
        raise RuntimeError("/home/secret/path")

    monkeypatch.setattr(library, "folders", fails)
    response = client.get("/api/folders")
    assert "secret" not in refused(response, 500, "failed")
    assert response.headers["x-content-type-options"] == "nosniff"


# Tokens.


def test_a_token_is_asked_for_everywhere(library):
    with client_of(library, token=TOKEN) as client:
        for path in ("/", "/api/index", "/pictures/0/file", "/page/app.js", "/nothing", "/?token=", "/?token=wrong"):
            refused(client.get(path), 401, "no_token")
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": "x=y"}):
            refused(client.get("/api/index", headers=headers), 401, "no_token")
        refused(client.get(f"/?token={TOKEN}&token={TOKEN}"), 401, "no_token")
        refused(client.post(f"/api/search?token={TOKEN}", json={}), 401, "no_token")
        assert client.get("/api/index", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_address_with_the_token_sets_a_cookie(library):
    with client_of(library, token=TOKEN) as client:
        response = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, "/")
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/api/index").status_code == 200
        assert client.post("/api/search", json={}).status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example", "/\\evil.example", "/%2f/evil.example"])
def test_the_redirect_stays_here(library, path):
    with client_of(library, token=TOKEN) as client:
        response = client.get(f"{BASE}{path}?token={TOKEN}", follow_redirects=False)
        assert response.status_code == 303
        assert response.headers["location"] == "/"


# Paths and ids.

IDS = [
    "-1",
    "+1",
    "1.0",
    "1e2",
    "0x1",
    "00",
    "01",
    " 1",
    "1 ",
    "１",
    "abc",
    "..",
    "%2e%2e",
    "1%00",
    "1;2",
    "99999999999999999999",
]


@pytest.mark.parametrize("id", IDS)
def test_what_is_no_id(client, id):
    for path in (f"/pictures/{id}/file", f"/pictures/{id}/thumbnail", f"/pictures/{id}/view", f"/api/pictures/{id}"):
        assert client.get(path).status_code == 404
    assert client.delete(f"/api/classes/{id}").status_code in (404, 405)


@pytest.mark.parametrize("id", ["8", "99", str(2**31), str(2**63 - 1)])
def test_ids_without_a_picture(client, id):
    refused(client.get(f"/pictures/{id}/file"), 404, "no_picture")


TRAVERSALS = [
    "../index.sqlite",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//etc/passwd",
    "/etc/passwd",
]
TRAVERSALS += ["..\\..\\x", "%00", "page/../../server/guard.py", "%c0%ae%c0%ae/x", "server/routes.py"]


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("prefix", ["/page/", "/pictures/", "/uploads/", "/"])
def test_traversal(client, prefix, path):
    response = client.get(prefix + path)
    assert response.status_code in (403, 404)
    assert b"root:" not in response.content and b"import" not in response.content


def test_what_is_not_there_is_json_for_programs(client):
    refused(client.get("/nothing"), 404, "not_found")
    refused(client.get("/api/nothing", headers={"Accept": "text/html"}), 404, "not_found")


def test_unknown_parts_of_the_address(client):
    refused(client.get("/api/index?x=1"), 400, "unknown_field")
    refused(client.get("/api/clusters?k=3&k=4"), 400, "unknown_field")
    for k in ("0", "-1", "257", "1.5", "nan", "", "99999999999"):
        refused(client.get(f"/api/clusters?k={k}"), 400, "bad_field")


# Files that are not what they were.


@pytest.fixture
def swapped(tmp_path):
    """A library whose first picture can be replaced, and its path."""
    library = build_library(tmp_path, 2)
    with client_of(library) as client:
        path = library._index.picture(0).path
        thumbnail = next((tmp_path / "index" / "thumbnails").glob(f"*/{library._index.picture(0).sha256}.webp"))
        yield client, path, thumbnail, tmp_path
    library.close()


def test_links_out_of_the_root(swapped):
    client, path, thumbnail, tmp_path = swapped
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)
    thumbnail.unlink()
    for kind in ("file", "view", "thumbnail"):
        refused(client.get(f"/pictures/0/{kind}"), 403, "outside")
    # Nor do exports follow it.
    lines = client.post("/api/export", json={"format": "tar", "pictures": [0]}).content
    assert b"JFIF" not in lines


def test_a_folder_that_became_a_link(swapped):
    client, path, _, tmp_path = swapped
    os.rename(path.parent, tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    refused(client.get("/pictures/0/file"), 403, "outside")


def test_a_link_inside_of_the_root_is_read(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").write_bytes(b"inside")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "root" / "a")
    with open_inside(tmp_path / "root", tmp_path / "root" / "b") as file:
        assert file.read() == b"inside"
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "a").write_bytes(b"outside")
    with pytest.raises(OutsideOfRoot):
        open_inside(tmp_path / "root", tmp_path / "root-2" / "a")


def test_pipes_and_folders_are_no_pictures(swapped):
    client, path, thumbnail, _ = swapped
    path.unlink()
    os.mkfifo(path)
    thumbnail.unlink()
    for kind in ("file", "view", "thumbnail"):
        assert client.get(f"/pictures/0/{kind}").status_code == 410
    path.unlink()
    path.mkdir()
    assert client.get("/pictures/0/file").status_code == 410


def test_a_picture_that_became_something_else(swapped):
    client, path, thumbnail, _ = swapped
    path.write_bytes(b"%PDF-1.7")
    thumbnail.unlink()
    refused(client.get("/pictures/0/view"), 422, "bad_image")
    refused(client.get("/pictures/0/thumbnail"), 422, "bad_image")
    # The file itself is only handed on, and is not shown by a browser.
    response = client.get("/pictures/0/file")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"].startswith("attachment;")


# Names and captions that mean harm.

NAMES = [
    'a"b.jpg',
    "a\r\nSet-Cookie: x=y.jpg",
    "a;filename=b.exe",
    "日本.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "\u202egpj.exe",
]
NAMES += ["../../x.jpg", "a\\b.jpg", "%0d%0aX: y.jpg", "\udcff.jpg", ".", "", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_disposition(name):
    header = disposition(name)
    header.encode("ascii")
    assert not set(header) & set("\r\n\0/\\")
    plain, coded = header.removeprefix('attachment; filename="').split("\"; filename*=UTF-8''")
    assert plain and '"' not in plain and ";" not in plain
    assert not set(coded) & set("\"'; <>")


def test_hostile_names_and_captions_are_text(tmp_path):
    name = "<script>alert(1)<script>\n=HYPERLINK(1).jpg"
    folder = tmp_path / "photos" / "=1+1"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(folder / "plain.jpg")
    os.rename(folder / "plain.jpg", folder / name)
    (folder / name.replace(".jpg", ".txt")).write_text('=cmd|"/c calc"!A1 </textarea><b onclick=x>', encoding="utf-8")
    library = build_library(tmp_path, 1)
    with client_of(library) as client:
        results = client.post("/api/search", json={}).json()["results"]
        (hostile,) = [result for result in results if "script" in result["name"]]
        assert "\n" not in hostile["name"]
        facts = client.get(f"/api/pictures/{hostile['id']}").json()
        assert facts["caption"].startswith("=cmd")
        file = client.get(facts["file"])
        assert file.status_code == 200
        assert "\n" not in file.headers["content-disposition"]
        table = client.post("/api/export", json={"format": "csv", "pictures": [hostile["id"]]})
        assert "'=cmd" in table.text and "'=1+1" in table.text
        lines = client.post("/api/export", json={"format": "paths", "pictures": [hostile["id"]]}).content
        assert lines.count(b"\n") == 1 and lines.startswith(b"file://")
    library.close()


@pytest.mark.parametrize("name", ["", " cat", "cat ", "a\nb", "a\x00", "\u202ecat", "x" * 201, "\ud800"])
def test_names_of_classes(client, name):
    response = client.post(
        "/api/classes", content=json.dumps({"name": name}), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400


# Bodies.


def test_long_bodies_by_header_and_by_content(client):
    kind = {"Content-Type": "application/json"}
    refused(client.post("/api/search", content=b" " * (MAX_JSON + 1), headers=kind), 413, "too_large")

    def parts(size):
        for _ in range(size // 2**16 + 1):
            yield b" " * 2**16

    refused(client.post("/api/search", content=parts(MAX_JSON), headers=kind), 413, "too_large")
    refused(client.post("/api/uploads", content=parts(MAX_UPLOAD)), 413, "too_large")
    refused(client.post("/api/uploads", content=b"x" * (MAX_UPLOAD + 1)), 413, "too_large")
    # The header alone is enough: nothing is read.
    refused(client.post("/api/uploads", content=b"", headers={"Content-Length": "9" * 30}), 413, "too_large")


JSON = {
    "empty": b"",
    "not JSON": b"{",
    "an array": b"[]",
    "a number": b"1",
    "NaN": b'{"collapse": NaN}',
    "Infinity": b'{"collapse": -Infinity}',
    "too large a number": b'{"collapse": 1e999}',
    "long integer": b'{"limit": ' + b"9" * 10_000 + b"}",
    "repeated name": b'{"query": "a", "query": "b"}',
    "deep arrays": b'{"terms": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "not UTF-8": b'{"query": "\xff"}',
    "UTF-16": '{"query": "a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "trailing": b"{} {}",
}


@pytest.mark.parametrize("body", JSON.values(), ids=JSON)
def test_what_is_no_json(client, body):
    response = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    refused(response, 400, "bad_json")


FIELDS = {
    "unknown": {"querry": "x"},
    "unknown filter": {"filters": {"foldr": "0:"}},
    "unknown in a term": {"terms": [{"text": "x", "wieght": 2}]},
    "limit 0": {"limit": 0},
    "limit 1001": {"limit": 1001},
    "limit true": {"limit": True},
    "limit text": {"limit": "5"},
    "limit float": {"limit": 5.5},
    "collapse": {"collapse": 2},
    "collapse below what is kept": {"collapse": 0.1},
    "cursor": {"cursor": "x"},
    "cursor number": {"cursor": 5},
    "query and terms": {"query": "x", "terms": [{"text": "y"}]},
    "query too long": {"query": "x" * 2001},
    "query with an operator at its end": {"query": "x -"},
    "half a character": {"query": "\ud800"},
    "terms too many": {"terms": [{"text": "x"}] * 65},
    "term of nothing": {"terms": [{}]},
    "term of two": {"terms": [{"text": "x", "picture": 1}]},
    "term without weight": {"terms": [{"text": "x", "weight": 0}]},
    "weight": {"terms": [{"text": "x", "weight": 1001}]},
    "empty text": {"terms": [{"text": " "}]},
    "picture that is not there": {"terms": [{"picture": 10**6}]},
    "picture negative": {"terms": [{"picture": -1}]},
    "picture too large": {"terms": [{"picture": 2**70}]},
    "terms that cancel out": {"terms": [{"text": "x"}, {"text": "x", "weight": -1}]},
    "folder": {"filters": {"folder": "../.."}},
    "date": {"filters": {"taken_after": "yesterday"}},
    "date too far": {"filters": {"taken_before": "99999-01-01"}},
    "width": {"filters": {"min_width": -1}},
    "relevance": {"filters": {"min_relevance": 1.1}},
    "filters that are none": {"filters": []},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_fields_of_a_search(client, fields):
    response = client.post("/api/search", content=json.dumps(fields), headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] in (
        *("unknown_field", "bad_field", "bad_query", "bad_filter", "bad_cursor", "missing_field"),
    )
    assert len(response.text) < 2000


OTHERS = [
    ("/api/labels", {"pictures": [0], "class": 1, "value": 1}),
    ("/api/labels", {"pictures": "all", "class": 1, "value": True}),
    ("/api/labels", {"class": 1, "value": True}),
    ("/api/labels", {"pictures": [0.5], "class": 1}),
    ("/api/export", {"format": "exe"}),
    ("/api/export", {"format": "csv", "path": "/tmp/x"}),
    ("/api/export", {"format": "csv", "pictures": [True]}),
    ("/api/probe", {"classes": []}),
    ("/api/probe", {"classes": ["1"]}),
    ("/api/classes", {"name": "x", "prompts": []}),
    ("/api/classes", {"name": "x", "prompts": ["y"] * 101}),
    ("/api/classes", {"name": "x", "threshold": 2}),
    ("/api/classes", {"name": "x", "id": 7}),
]


@pytest.mark.parametrize("path, fields", OTHERS)
def test_fields_of_others(client, path, fields):
    refused_with = client.post(path, json=fields)
    assert refused_with.status_code == 400, refused_with.text


# Pictures from outside.


def png(width, height, data=b""):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


UPLOADS = {
    "nothing": (b"", 400),
    "text": (b"hello", 415),
    "HTML": (b"<html><script>alert(1)</script>", 415),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "PDF": (b"%PDF-1.7 ...", 415),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0", 415),
    "header only": (jpeg()[:200], 415),
    "broken PNG": (png(64, 64, b"\0" * 10), 415),
    "bomb": (png(40_000, 40_000), 413),
    "bomb of zeros": (png(6000, 6000, b"\0" * (6000 * 18001)), 413),
}


@pytest.mark.parametrize("data, status", UPLOADS.values(), ids=UPLOADS)
def test_uploads_that_are_no_pictures(client, data, status):
    response = client.post("/api/uploads", content=data)
    refused(response, status, {413: "image_too_large"}.get(status, "bad_image"))


@pytest.mark.parametrize("token", ["..", "a" * 65, "%2e%2e", "x y", "ü", "index.html"])
def test_tokens_of_uploads(client, token):
    assert client.get(f"/uploads/{token}/thumbnail").status_code == 404
