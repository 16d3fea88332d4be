"""A library for tests of the page: any number of pictures that are drawn when they are looked at, and no model.

A picture shows a shape in a colour; words of a query find them by both. Some have hostile names.
"""

import io
import time

import numpy as np
from PIL import Image, ImageDraw

from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.library import Download

COLOURS = {
    "red": (205, 72, 60),
    "orange": (226, 146, 62),
    "yellow": (232, 200, 92),
    "green": (96, 150, 94),
    "blue": (74, 116, 176),
    "violet": (128, 98, 160),
}
GROUNDS = ((238, 233, 222), (52, 58, 66), (206, 219, 222), (228, 214, 205))
SHAPES = ("circle", "square", "triangle")
FOLDERS = ("", "2024/sea", "2024/sea/<b>north</b>", "2025/city at night")
SIZES = ((1200, 900), (900, 900), (800, 1200))
HOSTILE = ("<img src=x onerror=alert(1)>.png", '"><script>alert(2)</script>.jpg', "‮gpj.exe", "a" * 200 + ".jpg")


class DrawnLibrary:
    """Implements `keras_clip.search.server.library.Library`.

    Args:
        pictures: int, how many there are.
    """

    def __init__(self, pictures):
        self.size = pictures
        numbers = np.arange(pictures)
        # Far apart in the order by date, so that neighbours differ.
        self.colour, self.shape = numbers * 7 % len(COLOURS), numbers * 5 // 7 % len(SHAPES)
        self.removed, self.saved, self.said, self.exports = set(), {}, {}, []
        self.version, self.requests = 1, []

    def prepare(self):
        pass

    def refresh(self):
        pass

    def name(self, i):
        kind = f"{list(COLOURS)[self.colour[i]]} {SHAPES[self.shape[i]]}"
        return HOSTILE[i] if i < len(HOSTILE) else f"{kind} {i}.jpg"

    def index(self):
        return {
            "version": self.version,
            "pictures": self.size,
            "broken": 1,
            "roots": [{"id": 0, "name": "photos"}],
            "model": "drawn",
            "probability": False,
            "oldest": "2024-01-01T12:00:00",
            "newest": "2025-12-31T12:00:00",
            "writable_labels": True,
        }

    def folders(self):
        counts = np.bincount(np.arange(self.size) % len(FOLDERS), minlength=len(FOLDERS))
        return [{"root": 0, "path": path, "pictures": int(counts[i])} for i, path in enumerate(FOLDERS)]

    def _scores(self, terms):
        scores = np.zeros(self.size)
        for term in terms:
            if "picture" in term:
                i = self._row(term["picture"])
                part = 0.5 * (self.colour == self.colour[i]) + 0.5 * (self.shape == self.shape[i])
            elif "upload" in term:
                mean = np.asarray(Image.open(io.BytesIO(term["upload"])).convert("RGB")).mean((0, 1))
                nearest = min(range(len(COLOURS)), key=lambda c: np.abs(mean - list(COLOURS.values())[c]).sum())
                part = 0.5 * (self.colour == nearest)
            else:
                words = term["text"].lower().split()
                part = 0.5 * sum(self.colour == c for c, name in enumerate(COLOURS) if name in words) + np.zeros(
                    self.size
                )
                part = part + 0.5 * sum(self.shape == s for s, name in enumerate(SHAPES) if name in words)
            scores = scores + term["weight"] * part
        return scores

    def search(self, request):
        self.requests.append(request)
        filters, numbers = request.filters, np.arange(self.size)
        scores = self._scores(request.terms)
        allowed = np.ones(self.size, bool)
        allowed[list(self.removed)] = False
        if "folder" in filters:
            inside = [path == filters["folder"][2:] or path.startswith(filters["folder"][2:] + "/") for path in FOLDERS]
            allowed &= np.array(inside)[numbers % len(FOLDERS)]
        if "words" in filters:
            allowed &= np.array([filters["words"].lower() in self.name(i).lower() for i in numbers])
        for name, wanted in (("label", True), ("not_label", False)):
            if name in filters:
                allowed &= np.array([(filters[name] in self._labels(i)) == wanted for i in numbers])
        relevance = np.clip(scores, 0, 1)
        allowed &= relevance >= filters.get("min_relevance", 0)
        if request.collapse is not None:
            allowed &= numbers % 10 != 2
        order = np.lexsort((numbers, -scores))
        order = order[allowed[order]]
        version, offset = map(int, request.cursor.split(".")) if request.cursor else (self.version, 0)
        if version != self.version:
            raise ApiError(409, "stale_cursor", "The cursor is of another version of the index.")
        page, end = order[offset : offset + request.limit], offset + request.limit
        return {
            "version": self.version,
            "total": len(order),
            "cutoff": int((scores[order] > 0.5).sum()) if request.terms else len(order),
            "cursor": f"{version}.{end}" if end < len(order) else None,
            "results": [
                self._result(int(i), float(scores[i]), float(relevance[i]), request.collapse is not None) for i in page
            ],
        }

    def _result(self, i, score, relevance, collapsed):
        width, height = SIZES[i % len(SIZES)]
        return {
            "id": i,
            "name": self.name(i),
            "folder": f"0:{FOLDERS[i % len(FOLDERS)]}",
            "width": width,
            "height": height,
            "thumbnail": f"/pictures/{i}/thumbnail",
            "score": score,
            "relevance": relevance,
            "copies": 2 if collapsed and i // 6 % 2 else 1,
            "labels": self._labels(i),
        }

    def _row(self, i):
        if i >= self.size or i in self.removed:
            raise ApiError(404, "no_picture", f"There is no picture {i}.")
        return i

    def _belongs(self, i, key):
        said = self.said.get((i, key))
        return bool(self.saved[key]["scores"][i] >= self.saved[key]["threshold"]) if said is None else said

    def _labels(self, i):
        return [entry["name"] for key, entry in self.saved.items() if self._belongs(i, key)]

    def picture(self, i):
        result = self._result(self._row(i), 0.0, 0.0, False)
        copies = [{"id": i + 1, "name": self.name(i + 1), "thumbnail": f"/pictures/{i + 1}/thumbnail"}]
        return {
            **{name: result[name] for name in ("id", "name", "folder", "width", "height", "thumbnail")},
            "caption": f"a {list(COLOURS)[self.colour[i]]} {SHAPES[self.shape[i]]} <i>drawn</i>",
            "taken": f"2024-{1 + i % 12:02}-{1 + i % 28:02}T12:00:00",
            "size": 123456 + i,
            "format": "JPEG",
            "labels": [
                {"class": key, "name": entry["name"], "by_hand": self.said.get((i, key)) is not None}
                for key, entry in self.saved.items()
                if self._belongs(i, key)
            ],
            "best_classes": [{"name": e["name"], "score": float(e["scores"][i])} for e in self.saved.values()],
            "copies": copies if i % 10 == 1 and i + 1 < self.size else [],
        }

    def _draw(self, i, longest):
        width, height = (longest * side // max(SIZES[i % len(SIZES)]) for side in SIZES[i % len(SIZES)])
        image = Image.new("RGB", (width, height), GROUNDS[i // 3 % len(GROUNDS)])
        draw, r = ImageDraw.Draw(image), longest * (22 + i % 9) // 100
        x, y = width // 2 + (i % 5 - 2) * width // 30, height // 2 + (i % 3 - 1) * height // 30
        colour = list(COLOURS.values())[self.colour[i]]
        if self.shape[i] == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), colour)
        elif self.shape[i] == 1:
            draw.rectangle((x - r, y - r, x + r, y + r), colour)
        else:
            draw.polygon((x, y - r, x + r, y + r, x - r, y + r), colour)
        return image

    def thumbnail(self, i):
        file = io.BytesIO()
        self._draw(self._row(i), 256).save(file, "WEBP", method=0)
        return file.getvalue(), f"{i:064x}"

    def open_file(self, i):
        file = io.BytesIO()
        self._draw(self._row(i), 1200).save(file, "JPEG")
        file.seek(0)
        return file, self.name(i)

    def clusters(self, k):
        pairs = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))][:k]
        found = []
        for c, s in pairs:
            rows = np.flatnonzero((self.colour == c) & (self.shape == s))
            if len(rows):
                name = f"{list(COLOURS)[c]} {SHAPES[s]}"
                query = {"terms": [{"text": name, "weight": 1.0}]}
                found.append({"name": name, "pictures": len(rows), "cover": int(rows[-1]), "query": query})
        return found

    def classes(self):
        return [self._entry(key) for key in self.saved]

    def _entry(self, key):
        entry = self.saved[key]
        belongs = entry["scores"] >= entry["threshold"]
        for (i, k), value in self.said.items():
            if k == key and value is not None:
                belongs[i] = value
        return {
            "id": key,
            **{name: entry[name] for name in ("name", "prompts", "threshold")},
            "pictures": int(belongs.sum()),
            "by_hand": sum(k == key and value is not None for (_, k), value in self.said.items()),
            "histogram": {"low": 0.0, "high": 1.0, "counts": np.histogram(entry["scores"], 20, (0, 1))[0].tolist()},
        }

    def _key(self, key):
        if key not in self.saved:
            raise ApiError(404, "no_class", f"There is no class {key}.")
        return key

    def add_class(self, name, prompts, threshold):
        if any(entry["name"] == name for entry in self.saved.values()):
            raise ApiError(409, "class_exists", f"There is a class {name!r} already. Choose another name.")
        key = max(self.saved, default=0) + 1
        scores = self._scores([{"text": prompt, "weight": 1 / len(prompts)} for prompt in prompts])
        noise = np.random.default_rng(0).normal(0, 0.06, self.size)
        self.saved[key] = {
            "name": name,
            "prompts": prompts,
            "threshold": 0.7 if threshold is None else threshold,
            "scores": np.clip(scores * 0.8 + 0.1 + noise, 0, 1),
        }
        return self._entry(key)

    def change_class(self, key, changes):
        self.saved[self._key(key)].update(changes)
        return self._entry(key)

    def remove_class(self, key):
        del self.saved[self._key(key)]
        self.said = {pair: value for pair, value in self.said.items() if pair[1] != key}

    def label(self, pictures, key, value):
        for i in map(self._row, pictures):
            self.said[i, self._key(key)] = value
        return len(pictures)

    def export(self, format, pictures, classes):
        self.exports.append((format, pictures, classes))
        data = f"{format} {pictures} {classes}".encode()
        return Download(f"pictures.{format}", "application/octet-stream", iter([data]), len(data))

    def probe(self, classes):
        time.sleep(0.05)
        rows = [
            {"picture": 3 * i + 1, "class": classes[i % len(classes)], "probability": 0.5 + i / 100} for i in range(6)
        ]
        found = {"suggestions": rows[:4], "uncertain": rows[4:]}
        return {"accuracy": 0.9, "low": 0.8, "high": 0.95, "pictures": 40, **found}
