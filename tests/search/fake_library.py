"""A library of drawn scenes for the development of the page: real pictures, words that find them, and no model.

PYTHONPATH=.:tests/search python tests/search/fake_library.py --pictures 300 --port 8300
"""

import argparse
import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from keras_clip.data import synthetic
from keras_clip.search.server import create_application
from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.library import Download, encoded

DIM = 64
FOLDERS = ("2024/sea", "2024/city at night", "2025", "")


def _vector(word):
    return np.random.default_rng(list(word.encode())).normal(size=DIM)


def embed(text):
    words = [word.rstrip("s") for word in text.lower().split() if word not in ("a", "of", "on", "the")]
    vector = sum((_vector(word) for word in words), np.zeros(DIM))
    return vector / max(np.linalg.norm(vector), 1e-9)


class FakeLibrary:
    """Implements `keras_clip.search.server.library.Library` over scenes in a folder."""

    def __init__(self, folder, pictures=300, draw=True, size=96):
        self.root = Path(folder) / "photos"
        self.pictures, self.embeddings, self.removed = [], [], set()
        for place in range(pictures):
            scene = synthetic.sample_scene(place // 2 if place % 10 == 1 else place)
            where = FOLDERS[place % len(FOLDERS)]
            path = self.root / where / f"{scene.kind.name.replace(' ', '_')}_{place}.jpg"
            width, height = ((size * 3 // 2, size), (size, size), (size, size * 3 // 2))[place % 3]
            if draw:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(synthetic.draw(scene, max(width, height))).crop((0, 0, width, height)).save(path)
            caption = synthetic.caption(scene) if place % 3 else ""
            self.pictures.append(
                {
                    "id": place,
                    "name": path.name,
                    "folder": f"0:{where}",
                    "width": width,
                    "height": height,
                    "path": path,
                    "taken": f"202{4 + place % 2}-{1 + place % 12:02}-{1 + place % 28:02}T12:00:00",
                    "caption": caption,
                }
            )
            self.embeddings.append(embed(f"{scene.kind.name} {scene.background}"))
        self.embeddings = np.array(self.embeddings).reshape(-1, DIM)
        self.saved, self.by_hand = {}, {}

    def refresh(self):
        pass

    def index(self):
        dates = sorted(picture["taken"] for picture in self.pictures)
        return {
            "version": 1,
            "pictures": len(self.pictures) - len(self.removed),
            "broken": 1,
            "roots": [{"id": 0, "name": "photos"}],
            "model": "words of the captions",
            "probability": False,
            "oldest": dates[0] if dates else None,
            "newest": dates[-1] if dates else None,
            "writable_labels": True,
        }

    def folders(self):
        counts = {}
        for picture in self.pictures:
            counts[picture["folder"][2:]] = counts.get(picture["folder"][2:], 0) + 1
        return [{"root": 0, "path": path, "pictures": count} for path, count in sorted(counts.items())]

    def _query(self, request):
        terms = list(request.terms)
        if request.query and request.query.strip():
            for sign, part in ((-1 if i else 1, part) for i, part in enumerate(request.query.split(" - "))):
                terms.append({"text": part, "weight": float(sign)})
        vector = np.zeros(DIM)
        for term in terms:
            if "upload" in term:
                part = np.resize(np.asarray(Image.open(io.BytesIO(term["upload"]))).mean((0, 1)), DIM)
            else:
                part = self.embeddings[self._row(term["picture"])] if "picture" in term else embed(term["text"])
            vector += term["weight"] * part
        return vector / max(np.linalg.norm(vector), 1e-9), bool(terms)

    def _row(self, picture):
        if picture in self.removed:
            raise ApiError(410, "removed", f"Picture {picture} has been removed.")
        if not 0 <= picture < len(self.pictures):
            raise ApiError(404, "no_picture", f"There is no picture {picture}.")
        return picture

    def search(self, request):
        vector, has_terms = self._query(request)
        scores = self.embeddings @ vector
        order = sorted(range(len(scores)), key=lambda i: (-scores[i] if has_terms else self.pictures[i]["taken"], i))
        order = [i for i in order if i not in self.removed and self._allowed(i, request.filters, scores[i])]
        offset = 0
        if request.cursor:
            try:
                version, offset = json.loads(base64.urlsafe_b64decode(request.cursor))
            except ValueError:
                raise ApiError(400, "bad_cursor", "This is no cursor of a page.") from None
        page = order[offset : offset + request.limit]
        end = offset + len(page)
        return {
            "version": 1,
            "total": len(order),
            "cutoff": sum(bool(scores[i] > 0.3) for i in order),
            "cursor": base64.urlsafe_b64encode(json.dumps([1, end]).encode()).decode() if end < len(order) else None,
            "results": [self._result(i, scores[i]) for i in page],
        }

    def _allowed(self, i, filters, score):
        picture, folder = self.pictures[i], filters.get("folder")
        return (
            (
                folder is None
                or picture["folder"] == folder
                or folder == "0:"
                or picture["folder"].startswith(f"{folder}/")
            )
            and picture["taken"] >= filters.get("taken_after", "")
            and picture["taken"][:10] <= filters.get("taken_before", "9")
            and picture["width"] >= filters.get("min_width", 0)
            and picture["height"] >= filters.get("min_height", 0)
            and all(
                w in f"{picture['name']} {picture['caption']}".lower() for w in filters.get("words", "").lower().split()
            )
            and ("label" not in filters or filters["label"] in self._labels(i))
            and ("not_label" not in filters or filters["not_label"] not in self._labels(i))
            and score >= filters.get("min_score", -2)
            and self._relevance(score) >= filters.get("min_relevance", 0)
        )

    def _relevance(self, score):
        return round(float(1 / (1 + np.exp(-10 * (score - 0.3)))), 4)

    def _result(self, i, score):
        picture = self.pictures[i]
        return {
            **{k: picture[k] for k in ("id", "name", "folder", "width", "height")},
            "thumbnail": f"/pictures/{i}/thumbnail",
            "score": float(score),
            "relevance": self._relevance(score),
            "copies": 2 if i % 10 == 1 else 1,
            "labels": self._labels(i),
        }

    def _labels(self, i):
        return [entry["name"] for key, entry in self.saved.items() if self._belongs(i, key)]

    def _belongs(self, i, key):
        entry, hand = self.saved[key], self.by_hand.get((i, key))
        return bool(self.embeddings[i] @ entry["vector"] >= entry["threshold"]) if hand is None else hand

    def picture(self, picture):
        i = self._row(picture)
        scores = {entry["name"]: float(self.embeddings[i] @ entry["vector"]) for entry in self.saved.values()}
        facts = {k: v for k, v in self.pictures[i].items() if k != "path"}
        best = sorted(scores.items(), key=lambda item: -item[1])[:5]
        return {
            **facts,
            "size": self.pictures[i]["path"].stat().st_size,
            "format": "JPEG",
            "sha256": f"{i:064x}",
            "thumbnail": f"/pictures/{i}/thumbnail",
            "view": f"/pictures/{i}/view",
            "file": f"/pictures/{i}/file",
            "labels": [
                {"class": key, "name": entry["name"], "by_hand": (i, key) in self.by_hand}
                for key, entry in self.saved.items()
                if self._belongs(i, key)
            ],
            "best_classes": [{"name": name, "score": score} for name, score in best],
            "copies": [{"id": i - 1, "name": self.pictures[i - 1]["name"], "thumbnail": f"/pictures/{i - 1}/thumbnail"}]
            if i % 10 == 1
            else [],
        }

    def thumbnail(self, picture):
        return encoded(Image.open(self.pictures[self._row(picture)]["path"]), 256), f"{picture:064x}"

    def open_file(self, picture):
        entry = self.pictures[self._row(picture)]
        return open(entry["path"], "rb"), entry["name"]

    def clusters(self, k):
        parts = [part for part in np.array_split(np.arange(len(self.pictures)), k) if len(part)]
        return [
            {
                "name": self.pictures[part[0]]["name"].rsplit("_", 1)[0].replace("_", " "),
                "pictures": len(part),
                "cover": int(part[0]),
                "query": {"terms": [{"picture": int(part[0]), "weight": 1.0}]},
            }
            for part in parts
        ]

    def classes(self):
        return [self._entry(key) for key in self.saved]

    def _entry(self, key):
        entry = self.saved[key]
        scores = self.embeddings @ entry["vector"]
        return {
            "id": key,
            "name": entry["name"],
            "prompts": entry["prompts"],
            "threshold": entry["threshold"],
            "pictures": sum(self._belongs(i, key) for i in range(len(self.pictures)) if i not in self.removed),
            "by_hand": sum(k == key for _, k in self.by_hand),
            "histogram": {"low": -1.0, "high": 1.0, "counts": np.histogram(scores, 40, (-1, 1))[0].tolist()},
        }

    def _key(self, class_id):
        if class_id not in self.saved:
            raise ApiError(404, "no_class", f"There is no class {class_id}.")
        return class_id

    def add_class(self, name, prompts, threshold):
        if any(entry["name"] == name for entry in self.saved.values()):
            raise ApiError(409, "class_exists", f"There is a class {name!r} already. Choose another name.")
        key = max(self.saved, default=0) + 1
        self.saved[key] = {
            "name": name,
            "prompts": prompts,
            "threshold": 0.5 if threshold is None else threshold,
            "vector": embed(" ".join(prompts)),
        }
        return self._entry(key)

    def change_class(self, class_id, changes):
        entry = self.saved[self._key(class_id)]
        entry.update(changes, vector=embed(" ".join(changes.get("prompts", entry["prompts"]))))
        return self._entry(class_id)

    def remove_class(self, class_id):
        del self.saved[self._key(class_id)]

    def label(self, pictures, class_id, value):
        for i in map(self._row, pictures):
            self.by_hand[i, self._key(class_id)] = value
            if value is None:
                del self.by_hand[i, class_id]
        return len(pictures)

    def export(self, format, pictures, classes):
        data = json.dumps({"format": format, "pictures": pictures, "classes": classes}).encode()
        name = {"tar": "pictures.tar", "folder": "pictures.zip", "paths": "pictures.txt"}.get(
            format, f"pictures.{format}"
        )
        return Download(name, "application/octet-stream", (part for part in [data]), len(data))

    def probe(self, classes):
        rows = [{"picture": i, "class": classes[i % len(classes)], "probability": 0.9 - i / 100} for i in range(10)]
        return {"accuracy": 0.9, "low": 0.8, "high": 0.95, "pictures": 40, "suggestions": rows}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--port", type=int, default=8300)
    args = parser.parse_args(argv)
    import uvicorn

    with tempfile.TemporaryDirectory() as folder:
        uvicorn.run(create_application(FakeLibrary(folder, args.pictures)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
