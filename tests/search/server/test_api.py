"""The JSON API over a real index: what each route answers."""

import io
import json
import threading

import pytest
from colour_library import build_library
from PIL import Image
from starlette.testclient import TestClient

from keras_clip.search import update_index
from keras_clip.search.labels import probe
from keras_clip.search.server import create_application

pytestmark = pytest.mark.backend_free
BASE = "http://127.0.0.1:8300"
BRIEF = {"id", "name", "folder", "width", "height", "thumbnail"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("api"), 40)


@pytest.fixture(scope="module")
def client(library):
    with TestClient(create_application(library), base_url=BASE, raise_server_exceptions=False) as client:
        yield client


def search(client, **fields):
    response = client.post("/api/search", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def ids(page):
    return [result["id"] for result in page["results"]]


def test_index_says_what_there_is(client, library):
    answer = client.get("/api/index").json()
    assert answer["pictures"] == 40
    assert answer["roots"] == [{"id": 0, "name": "photos"}]
    assert answer["oldest"] < answer["newest"] < "2025"
    assert set(answer) == {
        *("version", "pictures", "broken", "roots", "model", "probability", "oldest", "newest", "writable_labels")
    }


def test_folders_have_the_numbers_of_their_pictures(client):
    folders = client.get("/api/folders").json()["folders"]
    assert folders == [
        {"root": 0, "path": path, "pictures": 10} for path in ("", "2024/city at night", "2024/sea", "2025")
    ]


def test_search_finds_what_the_words_mean(client):
    page = search(client, query="red", limit=5)
    assert set(page) == {"version", "total", "cutoff", "cursor", "results"}
    assert set(page["results"][0]) == {*BRIEF, "score", "relevance", "copies", "labels"}
    assert "_red_" in page["results"][0]["name"]
    scores = [result["score"] for result in page["results"]]
    assert scores == sorted(scores, reverse=True)


def test_terms_are_the_same_as_their_written_form(client):
    terms = [{"text": "red"}, {"text": "blue", "weight": -0.5}, {"picture": 3, "weight": 0.25}]
    written = search(client, query="red - 0.5*blue + 0.25*picture:3")
    assert search(client, terms=terms)["results"] == written["results"]


@pytest.mark.parametrize("limit", [7, 13, 40])
@pytest.mark.parametrize("query", ["red", ""])
def test_all_pages_together_are_one_search(client, query, limit):
    whole = search(client, query=query, limit=1000)
    found, cursor = [], None
    while True:
        page = search(client, query=query, limit=limit, cursor=cursor)
        found, cursor = found + page["results"], page["cursor"]
        if cursor is None:
            break
    assert found == whole["results"]
    assert len(found) == whole["total"] == 40


FILTERS = {
    "folder": ({"folder": "0:2024/sea"}, lambda r: r["folder"] == "0:2024/sea"),
    "folder above": ({"folder": "0:2024"}, lambda r: r["folder"].startswith("0:2024/")),
    "width": ({"min_width": 72}, lambda r: r["width"] == 72),
    "words": ({"words": "LARGE"}, lambda r: "large" in r["name"]),
    "score": ({"min_score": 0.2}, lambda r: r["score"] >= 0.2),
    "relevance": ({"min_relevance": 0.5}, lambda r: r["relevance"] >= 0.5),
}


@pytest.mark.parametrize("filters, holds", FILTERS.values(), ids=FILTERS)
def test_filters(client, filters, holds):
    everything = search(client, query="green", limit=1000)["results"]
    found = search(client, query="green", limit=1000, filters=filters)["results"]
    assert found == [result for result in everything if holds(result)]
    assert 0 < len(found) < 40


def test_dates_and_copies(client):
    by_date = search(client, query="", limit=1000)
    dates = [client.get(f"/api/pictures/{id}").json()["taken"] for id in ids(by_date)]
    assert dates == sorted(dates, reverse=True)
    day = dates[10][:10]
    assert len(search(client, filters={"taken_after": day, "taken_before": day})["results"]) == 1
    collapsed = search(client, query="", collapse=0.95, limit=1000)
    assert collapsed["total"] < 40
    assert sum(result["copies"] for result in collapsed["results"]) == 40


def test_a_picture_has_its_facts_copies_and_classes(client, library):
    twin = next(r["id"] for r in search(client, query="", limit=1000)["results"] if r["name"].endswith("_1.jpg"))
    facts = client.get(f"/api/pictures/{twin}").json()
    assert {*BRIEF, "view", "file", "size", "taken", "caption", "format", "sha256"} <= set(facts)
    assert facts["copies"] and all(set(copy) == BRIEF for copy in facts["copies"])
    assert facts["format"] == "JPEG"
    with library.open_file(twin)[0] as file:
        content = file.read()
    response = client.get(facts["file"])
    assert response.content == content
    assert response.headers["content-length"] == str(facts["size"])
    assert "attachment" in response.headers["content-disposition"]


def test_thumbnails_are_cached_under_their_digest(client):
    response = client.get("/pictures/0/thumbnail")
    assert response.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(response.content)).size) <= 256
    tag = response.headers["etag"]
    again = client.get("/pictures/0/thumbnail", headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/pictures/0/thumbnail", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_view_is_encoded_again(client):
    response = client.get("/pictures/0/view")
    image = Image.open(io.BytesIO(response.content))
    assert image.format == "WEBP"
    assert max(image.size) <= 2048
    assert not image.getexif()


def test_an_upload_searches_and_has_a_thumbnail(client, library):
    picture = ids(search(client, query="blue", limit=1))[0]
    data = client.get(f"/pictures/{picture}/file").content
    sent = client.post("/api/uploads", content=data)
    assert sent.status_code == 201
    token = sent.json()["upload"]
    assert (sent.json()["width"], sent.json()["height"]) == Image.open(io.BytesIO(data)).size
    found = search(client, terms=[{"upload": token}], limit=3)
    assert found["results"][0]["score"] > 0.99
    assert client.get(f"/uploads/{token}/thumbnail").headers["content-type"] == "image/webp"
    assert client.post("/api/search", json={"terms": [{"upload": "unknown"}]}).status_code == 404


def test_clusters_cover_all_pictures(client):
    clusters = client.get("/api/clusters?k=5").json()["clusters"]
    assert sum(cluster["pictures"] for cluster in clusters) == 40
    assert {"name", "pictures", "cover", "query"} == set(clusters[0])
    assert ids(search(client, **clusters[0]["query"], limit=1)) == [clusters[0]["cover"]]


@pytest.fixture
def red(client):
    made = client.post("/api/classes", json={"name": "red", "prompts": ["red"], "threshold": 0.5})
    assert made.status_code == 201, made.text
    yield made.json()
    client.delete(f"/api/classes/{made.json()['id']}")


def test_a_class_is_counted_corrected_and_searched(client, red):
    page = search(client, query="red", limit=1000)
    members = [result["id"] for result in page["results"] if result["score"] >= 0.5]
    assert red["pictures"] == len(members) > 0
    assert sum(red["histogram"]["counts"]) == 40
    assert ids(search(client, filters={"label": "red"}, query="red", limit=1000)) == members
    wrong, missed = members[0], ids(page)[-1]
    for picture, value in ((wrong, False), (missed, True)):
        answer = client.post("/api/labels", json={"pictures": [picture], "class": red["id"], "value": value})
        assert answer.json() == {"changed": 1}
    (counted,) = client.get("/api/classes").json()["classes"]
    assert (counted["pictures"], counted["by_hand"]) == (len(members), 2)
    corrected = ids(search(client, filters={"label": "red"}, query="red", limit=1000))
    assert corrected == [*members[1:], missed]
    others = ids(search(client, filters={"not_label": "red"}, query="red", limit=1000))
    assert sorted(others + corrected) == sorted(ids(page))
    assert client.get(f"/api/pictures/{missed}").json()["labels"][0]["by_hand"] is True
    client.post("/api/labels", json={"pictures": [wrong, missed], "class": red["id"], "value": None})
    assert ids(search(client, filters={"label": "red"}, query="red", limit=1000)) == members


def test_results_name_their_classes(client, red):
    page = search(client, query="red", limit=1000)
    for result in page["results"]:
        assert result["labels"] == (["red"] if result["score"] >= 0.5 else [])


def test_a_class_is_changed_and_removed(client, red):
    path = f"/api/classes/{red['id']}"
    changed = client.patch(path, json={"name": "reddish", "threshold": -1})
    assert (changed.json()["name"], changed.json()["pictures"]) == ("reddish", 40)
    assert client.patch(path, json={"prompts": ["blue"]}).json()["prompts"] == ["blue"]
    twice = client.post("/api/classes", json={"name": "reddish"})
    assert (twice.status_code, twice.json()["error"]["code"]) == (409, "class_exists")
    assert client.delete(path).status_code == 204
    for response in (client.delete(path), client.patch(path, json={"threshold": 0})):
        assert response.status_code == 404
    answer = client.post("/api/labels", json={"pictures": [0], "class": red["id"], "value": True})
    assert answer.status_code == 404
    assert client.post("/api/search", json={"filters": {"label": "reddish"}}).status_code == 404


def test_a_threshold_is_chosen_where_none_is_given(client):
    made = client.post("/api/classes", json={"name": "blue"}).json()
    assert made["prompts"] == ["blue"]
    assert 0 < made["pictures"] < 40
    client.delete(f"/api/classes/{made['id']}")


def test_exports_are_downloads(client, red):
    for format, name in {"csv": "pictures.csv", "json": "pictures.jsonl", "tar": "pictures.tar"}.items():
        response = client.post("/api/export", json={"format": format, "pictures": [3, 1, 99999]})
        assert response.status_code == 200
        assert f'filename="{name}"' in response.headers["content-disposition"]
    lines = client.post("/api/export", json={"format": "json", "pictures": [3, 1]}).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [3, 1]
    labelled = client.post("/api/export", json={"format": "json"}).text.splitlines()
    assert len(labelled) == red["pictures"]
    assert client.post("/api/export", json={"format": "json", "classes": [12345]}).status_code == 404


def test_a_probe_needs_labels_and_then_has_an_accuracy(client, monkeypatch):
    # All green pictures are near-duplicates by their colours.
    monkeypatch.setattr(probe, "_SAME", 1.1)
    made = {}
    for colour in ("green", "pink"):
        made[colour] = client.post("/api/classes", json={"name": colour, "threshold": 0.9}).json()["id"]
    few = client.post("/api/probe", json={"classes": list(made.values())})
    assert (few.status_code, few.json()["error"]["code"]) == (400, "bad_probe")
    taken = []
    for colour, class_id in made.items():
        best = [id for id in ids(search(client, query=colour, limit=20)) if id not in taken][:7]
        taken += best
        client.post("/api/labels", json={"pictures": best, "class": class_id, "value": True})
    answer = client.post("/api/probe", json={"classes": list(made.values())}).json()
    assert "error" not in answer, answer
    assert answer["low"] <= answer["accuracy"] <= answer["high"]
    assert answer["accuracy"] > 0.7
    assert 10 <= answer["pictures"] <= 14
    for suggestion in answer["suggestions"] + answer["uncertain"]:
        assert set(suggestion) == {"picture", "class", "probability"}
        assert suggestion["class"] in made.values()
    for class_id in made.values():
        client.delete(f"/api/classes/{class_id}")


def test_the_server_moves_on_with_the_index(tmp_path):
    library = build_library(tmp_path, 12)
    with TestClient(create_application(library), base_url=BASE) as client:
        first = search(client, query="red", limit=5)
        gone = next(iter((tmp_path / "photos" / "2025").glob("*.jpg")))
        name = gone.name
        (picture,) = [r["id"] for r in search(client, query="", limit=99)["results"] if r["name"] == name]
        gone.unlink()
        # Its file is gone, and the index does not know yet.
        response = client.get(f"/pictures/{picture}/file")
        assert (response.status_code, response.json()["error"]["code"]) == (410, "gone")
        update_index(tmp_path / "index", progress=False, clip=library.searcher.clip.image_embedder)
        assert library.refresh()
        assert client.get("/api/index").json()["pictures"] == 11
        for path in (f"/api/pictures/{picture}", f"/pictures/{picture}/file", f"/pictures/{picture}/thumbnail"):
            response = client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (410, "removed")
        # A cursor goes on in the order of its version.
        rest = search(client, query="red", limit=99, cursor=first["cursor"])
        assert rest["version"] == first["version"] < search(client, query="red")["version"]
        assert len({*ids(first), *ids(rest)}) == 12
        assert search(client, query="red", limit=99)["total"] == 11
    library.close()


def test_requests_do_not_wait_for_a_slow_one(client, library, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(k):
        begun.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(library, "clusters", slow)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.get("/api/clusters?k=3").status_code))
    thread.start()
    assert begun.wait(30)
    assert search(client, query="red")["total"] == 40
    assert client.get("/pictures/0/thumbnail").status_code == 200
    go_on.set()
    thread.join()
    assert answers == [200]


def test_too_many_waiting_calls_get_503(client, library, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(k):
        begun.set()
        assert go_on.wait(60)
        return []

    monkeypatch.setattr(library, "clusters", slow)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.get("/api/clusters?k=3"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    # One runs and eight wait; eleven are refused at once.
    while len(answers) < 11:
        threads[0].join(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 9 + [503] * 11
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"]["code"] == "busy"
    assert refused.headers["retry-after"] == "1"
