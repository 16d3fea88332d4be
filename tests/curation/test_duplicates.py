"""Duplicates: planted ones of each kind, brute force, independence of shards and engine, settings."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_pairs import write_tar
from PIL import Image, ImageEnhance

from keras_clip import curation
from keras_clip.curation import duplicates
from keras_clip.curation.duplicates import DuplicateSettings, exact_duplicates, perceptual_duplicates
from keras_clip.data.readers import open_reader

pytestmark = pytest.mark.backend_free
pa = pytest.importorskip("pyarrow")

EXACT, HASH, EMBEDDING = duplicates.REASONS.values()


def scene(seed, size=(120, 90)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# Key: image, captions. Each group is planted on purpose; "large" has more pixels than its copy.
PLANTED = {
    "alone": (encoded(scene(0)), ["a lonely scene"]),
    "copy1": (encoded(scene(1)), ["two squares"]),
    "copy2": (encoded(scene(1)), ["Two  SQUARES"]),
    "copy3": (encoded(scene(1)), ["another caption of the squares"]),
    "large": (encoded(scene(2, (240, 180))), ["a large scene", "its second caption"]),
    "small": (
        encoded(scene(2, (240, 180)).resize((120, 90), Image.Resampling.LANCZOS)),
        ["a small scene", "more of it"],
    ),
    "clear": (encoded(scene(3)), ["a clear scene"]),
    "lossy": (encoded(scene(3), "JPEG", quality=40), ["a lossy scene"]),
    "dark": (encoded(ImageEnhance.Brightness(scene(3)).enhance(0.9)), ["a dark scene"]),
    "broken1": (encoded(scene(1))[:300], ["two squares"]),
    "broken2": (encoded(scene(1))[:300], ["two squares"]),
    "twins": (encoded(scene(4)), ["one text", "ONE text", "other text"]),
}


def make_pool(folder, planted=PLANTED, shards=3, order=1, name="work"):
    """Writes the pairs into tars; the keys of the pool are those of the dict."""
    items = list(planted.items())[::order]
    for shard in range(shards):
        members = []
        for key, (image, captions) in items[shard::shards]:
            members += [(f"{key}.png", image), (f"{key}.json", json_of(captions))]
        write_tar(folder / f"{shard:02d}.tar", members)
    pool = curation.Pool.open(str(folder / "*.tar"), folder / name, mapping=("png", "captions"))
    curation.profile(pool, "serial", progress=False)
    return pool


def json_of(captions):
    import json

    return json.dumps({"captions": captions}).encode()


def verdicts(pool, name="duplicates", column="reason"):
    """Returns {(key, caption number): value}."""
    found = {}
    for shard in pool.shards:
        profile, verdict = pool.table("profile", shard), pool.table(name, shard)
        keys = zip(profile["key"].to_pylist(), profile["caption_number"].to_pylist(), strict=True)
        found.update(zip(keys, verdict[column].to_pylist(), strict=True))
    return found


def removed(pool, **options):
    settings = DuplicateSettings(**{"after": ()} | options)
    curation.find_duplicates(pool, "serial", settings=settings, progress=False)
    return {key: reason for key, reason in verdicts(pool).items() if reason}


def images_of(found):
    return {key for key, _ in found}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool"))


def test_copies_of_files(pool):
    found = removed(pool, methods=("exact",))
    assert len(found) == 2 and images_of(found) < {"copy1", "copy2", "copy3"}
    assert set(found.values()) == {EXACT}


def test_copies_of_pairs(pool):
    found = removed(pool, methods=("exact",), same="pair")
    # Of "copy1" and "copy2" one stays; "copy3" has another caption. Two captions of "twins" are the same text.
    assert len(images_of(found) & {"copy1", "copy2"}) == 1 and "copy3" not in images_of(found)
    assert len([key for key in found if key in {("twins", 0), ("twins", 1)}]) == 1 and ("twins", 2) not in found
    assert len(found) == 2


def test_images_that_look_the_same(pool):
    found = removed(pool, methods=("exact", "perceptual"), prefer=("profile", "pixels"))
    # All captions of a removed image are removed, and the larger image stays.
    assert {key for key in found if key[0] in ("small", "large")} == {("small", 0), ("small", 1)}
    assert len(images_of(found) & {"clear", "lossy", "dark"}) == 2
    assert {reason for (key, _), reason in found.items() if key in PLANTED and key.startswith("copy")} == {EXACT}
    assert found["small", 0] == HASH
    assert not images_of(found) & {"alone", "twins", "broken1", "broken2"}
    shards, rows = verdicts(pool, column="of_shard"), verdicts(pool, column="of_row")
    of = {key: (shards[key, 0], rows[key, 0]) for key in images_of(found) if shards[key, 0]}
    shard = next(shard for shard in pool.shards if shard.name == of["small"][0])
    assert pool.table("profile", shard)["key"][of["small"][1]].as_py() == "large"


def test_near_images_with_other_captions_are_other_pairs(pool):
    found = removed(pool, methods=("exact", "perceptual"), same="pair")
    assert not images_of(found) & {"large", "small", "clear", "lossy", "dark"}


def test_rejected_pairs_remove_nothing(pool):
    rule = curation.Rule("not contains(caption, 'large')", "large")
    curation.filter_pairs(pool, [rule], "serial", name="first", progress=False)
    preferred = {"prefer": ("profile", "pixels"), "methods": ("perceptual",)}
    found = removed(pool, **preferred, after=("first",))
    # The first caption of "large" is rejected, but the second one keeps the image.
    assert images_of(found) & {"large", "small"} == {"small"}
    curation.filter_pairs(pool, [curation.Rule("height < 180", "tall")], "serial", name="first", progress=False)
    found = removed(pool, **preferred, after=("first",))
    assert not images_of(found) & {"large", "small"}
    assert removed(pool, **preferred, after=None) == found  # all verdicts that are complete


def test_an_image_without_a_caption_removes_nothing(tmp_path):
    image = encoded(scene(0))
    pool = make_pool(tmp_path, {"a": (image, [""]), "b": (image, ["a caption"]), "c": (image, [])}, 1)
    for seed in range(4):
        assert not removed(pool, seed=seed, prefer=("profile", "pixels"))
    # Nor is it a duplicate itself: it is rejected for its own reason.
    assert curation.keep(pool, ["duplicates"], "serial", progress=False)["kept pairs"] == 1


def contents(pool, names):
    return {
        (name, shard.name): hashlib.sha256(pool.path(name, shard).read_bytes()).hexdigest()
        for name in names
        for shard in pool.shards
    }


@pytest.mark.slow
def test_the_same_bytes_from_both_engines_and_after_an_interruption(pool, tmp_path, monkeypatch):
    options = {"settings": DuplicateSettings(after=()), "progress": False}
    expected = curation.find_duplicates(pool, "serial", **options)
    names = (duplicates.SKETCH, "duplicates")
    again = make_pool(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(duplicates, "perceptual_duplicates", interrupt)
        with pytest.raises(KeyboardInterrupt):
            curation.find_duplicates(again, "serial", **options)
    with monkeypatch.context() as patched:
        # What was done is not done again.
        patched.setattr(duplicates, "exact_duplicates", interrupt)
        again.shards.reverse()
        assert curation.find_duplicates(again, curation_processes(), **options) == expected
    assert contents(again, names) == contents(pool, names)


def curation_processes():
    from keras_clip.engines import Processes

    return Processes(2)


@pytest.mark.parametrize("shards, order", [(1, 1), (2, -1), (5, 1)])
def test_which_stays_does_not_depend_on_the_shards(pool, tmp_path, shards, order):
    other = make_pool(tmp_path, shards=shards, order=order)
    for options in ({}, {"same": "pair"}, {"seed": 5}, {"prefer": ("profile", "bytes")}):
        assert removed(other, **options) == removed(pool, **options)


def test_the_seed_decides(pool):
    stays = {seed: frozenset(images_of(removed(pool, methods=("exact",), seed=seed))) for seed in range(8)}
    assert len(set(stays.values())) > 1


def with_embeddings(pool, vectors):
    """Writes a pass with these embeddings, {key: vector}; None is null."""
    size = len(next(iter(vectors.values())))
    kind = pa.list_(pa.float32(), size)

    class Given(curation.ShardPass):
        name, inputs = "score", ("profile",)

        def run(self, state, shard, inputs):
            rows = [vectors.get(key) for key in inputs["profile"]["key"].to_pylist()]
            return pa.table({"image_embedding": pa.array(rows, kind)}), {}

    curation.run_pass(pool, Given(), "serial", progress=False)


def test_embeddings_as_published(pool):
    degrees = {"alone": 0, "twins": 10, "clear": 20, "large": 80}
    with_embeddings(pool, {key: [np.cos(np.radians(x)), np.sin(np.radians(x))] for key, x in degrees.items()})
    found = removed(pool, methods=("embedding",), clusters=1, cosine=float(np.cos(np.radians(15))))
    # The centroid is near 27 degrees: 80 is the farthest, then 0; 10 is near 0, and 20 near 10, which is removed too.
    assert images_of(found) == {"twins", "clear"} and set(found.values()) == {EMBEDDING}
    assert {key for key in found if key[0] == "twins"} == {("twins", 0), ("twins", 1), ("twins", 2)}
    # In clusters of their own, they are not compared.
    assert not removed(pool, methods=("embedding",), clusters=4, cosine=0.1)


def test_embeddings_in_ranges_of_clusters(tmp_path, rng):
    planted = {f"k{i:02d}": (encoded(scene(0, (8, 8))), ["x"]) for i in range(40)}
    base = rng.normal(size=(8, 6))
    vectors = {key: (base[i % 8] + 0.02 * rng.normal(size=6)).tolist() for i, key in enumerate(planted)}
    results = []
    for number, (shards, memory) in enumerate([(2, 2**31), (5, 100)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pool = make_pool(folder, planted, shards)
        with_embeddings(pool, vectors)
        options = DuplicateSettings(("embedding",), clusters=5)
        curation.find_duplicates(pool, "serial", settings=options, memory=memory, progress=False)
        results.append(verdicts(pool))
    assert results[0] == results[1] and 28 <= sum(map(bool, results[0].values())) <= 32


def shard_parts(units):
    """Returns the function that the merges take, from (shard, row, image, hash, rank, draw) of each unit."""

    def parts():
        for shard in sorted({unit[0] for unit in units}):
            there = [unit for unit in units if unit[0] == shard]
            columns = {
                name: np.array([unit[i] for unit in there], np.uint64)
                for i, name in enumerate(("image", "hash", "rank", "draw"), start=2)
            }
            columns |= {"image_low": columns["image"] % np.uint64(3), "text": np.zeros(len(there), np.uint64)}
            yield shard, np.array([unit[1] for unit in there]), columns

    return parts


@st.composite
def pools(draw):
    count = draw(st.integers(1, 20))
    number = st.integers(0, 3)
    rows = [
        (i % 3, i // 3, draw(st.integers(0, 4)), draw(st.integers(0, 31)) << 20, draw(number), draw(number))
        for i in range(count)
    ]
    return rows


@settings(max_examples=100, deadline=None)
@given(pools(), st.integers(1, 4))
def test_exact_against_brute_force(units, num_parts):
    expected = {}
    for unit in units:
        first = min((other for other in units if other[2] == unit[2]), key=lambda u: (u[4], u[5], u[0], u[1]))
        if first != unit:
            expected[unit[:2]] = first[:2]
    found = exact_duplicates(shard_parts(units), num_parts)
    assert {(e["shard"], e["row"]): (e["of_shard"], e["of_row"]) for e in found} == expected


@settings(max_examples=100, deadline=None)
@given(pools(), st.integers(0, 3))
def test_perceptual_against_brute_force(units, distance):
    order = sorted(units, key=lambda u: (u[4], u[5], u[0], u[1]))
    leaders = [u for i, u in enumerate(order) if u[3] not in {v[3] for v in order[:i]}]
    stay = []
    for unit in leaders:
        if not any((unit[3] ^ other[3]).bit_count() <= distance for other in stay):
            stay.append(unit)
    found = perceptual_duplicates(shard_parts(units), distance)
    assert {(e["shard"], e["row"]) for e in found} == {u[:2] for u in units} - {u[:2] for u in stay}
    places = {u[:2]: u for u in units}
    for entry in found:
        kept = places[entry["of_shard"], entry["of_row"]]
        assert kept in stay
        assert (kept[3] ^ places[entry["shard"], entry["row"]][3]).bit_count() <= distance


def test_merging_in_steps_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    units = [(i % 9, i // 9, i, int(rng.integers(0, 64)) << 8, 0, int(rng.integers(0, 99))) for i in range(200)]
    whole = perceptual_duplicates(shard_parts(units), 1)
    monkeypatch.setattr(duplicates, "_MERGED", 10)
    np.testing.assert_array_equal(perceptual_duplicates(shard_parts(units), 1), whole)


REFUSED = {
    "no method": {"methods": ()},
    "an unknown method": {"methods": ("exact", "minhash")},
    "a method twice": {"methods": ("exact", "exact")},
    "another unit": {"same": "caption"},
    "a distance of 17": {"distance": 17},
    "a distance that is a fraction": {"distance": 2.5},
    "a cosine of 2": {"cosine": 2.0},
    "no cluster": {"clusters": 0},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_refused_settings(options):
    with pytest.raises(ValueError, match="Received: "):
        DuplicateSettings(**options)


def test_a_pool_without_embeddings(tmp_path):
    pool = make_pool(tmp_path, {"a": PLANTED["alone"]}, 1)
    with pytest.raises(ValueError, match="'score' must be complete"):
        removed(pool, methods=("embedding",))


def painted(colours, brightness=1.0):
    """Returns a drawing of two shapes in two colours on white, whose shades of grey are nearly equal."""
    image = Image.new("RGB", (96, 96), "white")
    image.paste(colours[0], (10, 10, 50, 60))
    image.paste(colours[1], (55, 40, 90, 90))
    return ImageEnhance.Brightness(image).enhance(brightness)


RED, GREEN, BLUE = (200, 60, 60), (60, 124, 60), (90, 90, 200)
COLOURED = {
    "red": painted((RED, BLUE)),
    "again": painted((RED, BLUE)).resize((60, 60), Image.Resampling.LANCZOS),
    "darker": painted((RED, BLUE), 0.85),
    "green": painted((GREEN, BLUE)),
    "other": painted((RED, GREEN)),
    "grey": painted((RED, BLUE)).convert("L"),
}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    planted = {key: (encoded(image), [key]) for key, image in COLOURED.items()}
    return make_pool(tmp_path_factory.mktemp("coloured"), planted)


def test_images_that_differ_in_a_colour_are_no_duplicates(coloured):
    found = removed(coloured, methods=("perceptual",))
    assert len(images_of(found) & {"red", "again", "darker"}) == 2
    assert not images_of(found) & {"green", "other", "grey"}
    # By shades of grey alone they are.
    assert len(images_of(removed(coloured, methods=("perceptual",), colours=None))) == 5


def test_a_pool_that_is_rejected_as_a_whole_has_no_duplicates(coloured):
    curation.filter_pairs(coloured, [curation.Rule("words > 99")], "serial", name="all", progress=False)
    assert removed(coloured, methods=("exact", "perceptual"), after=("all",)) == {}


def test_test_images_of_other_colours_are_not_near(coloured, tmp_path):
    (tmp_path / "red.png").write_bytes(encoded(COLOURED["red"]))
    hashes, colours = curation.fingerprint_images(open_reader(str(tmp_path), captions=False))
    near = {}
    for name, of_set in (("grey", None), ("colours", {"set": colours})):
        test_images = curation.TestImages({"set": hashes}, colours=of_set, name=name)
        curation.find_test_images(coloured, test_images, "serial", progress=False)
        near[name] = {key for (key, _), reason in verdicts(coloured, name).items() if reason}
    assert near == {"grey": set(COLOURED), "colours": {"red", "again", "darker"}}


@pytest.mark.parametrize("colours", [-1, float("nan"), float("inf"), "16", True])
def test_differences_of_colours_are_numbers(colours):
    with pytest.raises(ValueError, match="`colours` must be a number of at least 0, or None. Received: colours="):
        DuplicateSettings(colours=colours)


COLUMNS = {
    "no column": (("profile", "pixel"), "'profile' must have the column that is named. Received: 'pixel'"),
    "a text": (("profile", "caption"), "`prefer` must have numbers. Received: prefer=.*of type string"),
    "no pass": (("scores", "x"), "'scores' must be complete"),
}


@pytest.mark.parametrize("prefer, message", COLUMNS.values(), ids=COLUMNS)
def test_a_preference_is_a_column_of_numbers(coloured, prefer, message):
    with pytest.raises(ValueError, match=message):
        removed(coloured, prefer=prefer)
