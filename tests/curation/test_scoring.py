"""CLIP scores equal the products of the model's embeddings, for every form of pair, and files of models."""

import io

import keras
import numpy as np
import pytest
from numbered_pairs import write_tar
from PIL import Image

import keras_clip
from keras_clip import curation
from keras_clip.curation import scoring
from keras_clip.data.readers import open_reader

pa = pytest.importorskip("pyarrow")

LONG = "a very long caption " * 8


def picture(seed, form="PNG", size=(50, 40)):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


PAIRS = {
    "a": (picture(0), ["a red square"]),
    "b": (picture(1, "JPEG"), ["a dog", "a cat on a sofa", " "]),
    "c": (picture(2)[:200], ["a broken image"]),
    "d": (b"", ["no image"]),
    "e": (picture(3, size=(90, 20)), [LONG]),
    "f": (picture(0), ["a dog"]),
    "g": (picture(5), []),
}


@pytest.fixture(scope="module")
def clip():
    keras.utils.set_random_seed(0)
    tokenizer = keras_clip.data.CLIPTokenizer(24)
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 2)
    text_encoder = keras_clip.encoders.TextTransformer(16, 1, 2, context_length=24)
    return keras_clip.CLIPModel(image_encoder, text_encoder, 8, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    import json

    folder = tmp_path_factory.mktemp("pool")
    items = list(PAIRS.items())
    for shard in range(2):
        members = []
        for key, (image, captions) in items[shard::2]:
            members += [(f"{key}.png", image)] * bool(image)
            members += [(f"{key}.json", json.dumps({"captions": captions}).encode())]
        write_tar(folder / f"{shard}.tar", members)
    pool = curation.Pool.open(str(folder / "*.tar"), folder / "work", mapping=("png", "captions"))
    curation.profile(pool, "serial", progress=False)
    return pool


def rows(pool, name="score"):
    """Returns {(key, caption number): row of the table}."""
    found = {}
    for shard in pool.shards:
        for profile, row in zip(
            pool.table("profile", shard).to_pylist(), pool.table(name, shard).to_pylist(), strict=True
        ):
            found[profile["key"], profile["caption_number"]] = row
    return found


@pytest.fixture(scope="module")
def scores(clip, pool):
    counts = curation.score(pool, clip, batch_size=4, progress=False)
    return rows(pool), counts


def unit(x):
    x = np.asarray(keras.ops.convert_to_numpy(x), np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_scores_are_the_products_of_the_embeddings(clip, scores):
    found, counts = scores
    scored = {key: row for key, row in found.items() if row["clip_score"] is not None}
    assert set(scored) == {("a", 0), ("b", 0), ("b", 1), ("e", 0), ("f", 0)}
    assert counts == {"scored": 5, "images": 5}
    for (key, number), row in scored.items():
        image, captions = PAIRS[key]
        pixels = clip.image_embedder.image_preprocessor.to_uint8(image)
        expected = unit(clip.encode_image(pixels))[0]
        text = unit(clip.encode_text(clip.text_embedder.tokenizer([captions[number]], truncate=True)))[0]
        assert row["clip_score"] == pytest.approx(float(expected @ text), abs=1e-6)
        np.testing.assert_allclose(row["image_embedding"], expected, atol=1e-6)


def test_broken_images_and_blank_captions_have_no_score(scores):
    found, _ = scores
    for key in ("c", "d"):
        assert found[key, 0] == {"clip_score": None, "image_embedding": None}
    for key in (("b", 2), ("g", 0)):
        row = found.get(key)
        # Readers leave blank captions out, or the profile has a row for them.
        assert row is None or (row["clip_score"] is None and len(row["image_embedding"]) == 8)


def test_an_image_is_encoded_once(clip, pool, monkeypatch):
    seen = []
    decode = type(clip.image_embedder.image_preprocessor).to_uint8

    def counted(self, images, *args):
        seen.append(images)
        return decode(self, images, *args)

    monkeypatch.setattr(type(clip.image_embedder.image_preprocessor), "to_uint8", counted)
    curation.score(pool, clip, batch_size=4, name="again", progress=False)
    assert len(seen) == 5
    assert rows(pool, "again") == rows(pool)
    # A pass with the same weights is complete, and other weights are scored again.
    curation.score(pool, clip, batch_size=4, name="again", progress=False)
    assert len(seen) == 5


def test_a_saved_model(clip, pool, scores, tmp_path):
    clip.save(tmp_path / "clip.keras")
    digest = scoring.model_digest(tmp_path / "clip.keras")
    curation.score(pool, tmp_path / "clip.keras", batch_size=4, name="saved", progress=False)
    for key, row in rows(pool, "saved").items():
        assert (row["clip_score"] is None) == (scores[0][key]["clip_score"] is None)
        if row["clip_score"] is not None:
            assert row["clip_score"] == pytest.approx(scores[0][key]["clip_score"], abs=1e-6)
    with open(tmp_path / "clip.keras", "ab") as file:
        file.write(b"x")
    assert scoring.model_digest(tmp_path / "clip.keras") != digest
    assert scoring.model_digest("ViT-B-32") == "ViT-B-32"


def test_other_embeddings_of_images(clip, pool, scores):
    shard_pass = curation.ImageEmbeddings(lambda: clip.image_embedder, "test", "own", batch_size=3)
    assert curation.run_pass(pool, shard_pass, "serial", progress=False) == {"images": 5}
    for key, row in rows(pool, "own").items():
        expected = scores[0][key]["image_embedding"]
        assert (row["image_embedding"] is None) == (expected is None)
        if expected:
            np.testing.assert_allclose(row["image_embedding"], expected, atol=1e-6)


def test_captions_of_all_lengths(clip):
    captions = ["dog", "a dog " * 6, "a dog " * 40, "dog"]
    found = scoring.embed_captions(clip.text_embedder, captions, batch_size=2)
    expected = unit(clip.encode_text(clip.text_embedder.tokenizer(captions, truncate=True)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert scoring.embed_captions(clip.text_embedder, []).shape == (0, 8)


def test_models_without_texts_are_refused(clip):
    for model in (clip.image_embedder, clip.text_embedder):
        with pytest.raises(ValueError, match="both encoders"):
            scoring.Score(model).start()
    with pytest.raises(ValueError, match="batch_size"):
        scoring.Score("ViT-B-32", batch_size=0)


def test_a_model_that_returns_nan(clip, pool):
    class Broken:
        embed_dim, tokenizer = 8, clip.text_embedder.tokenizer

        def predict_on_batch(self, token_ids):
            return np.full((len(token_ids), 8), np.nan)

    with pytest.raises(ValueError, match="finite embeddings of captions"):
        scoring.embed_captions(Broken(), ["a"])


def filtered(pool, *expressions, **options):
    chosen = [curation.Rule(expression) for expression in expressions]
    places = {"clip_score": "score"}
    curation.filter_pairs(pool, chosen, "serial", places=places, progress=False, **options)
    return {key for key, row in rows(pool, "filter").items() if row["reason"] is None}


def test_filters_over_profile_and_scores(pool, scores):
    found = {key: row["clip_score"] for key, row in scores[0].items() if row["clip_score"] is not None}
    middle = sorted(found.values())[2]
    assert filtered(pool, f"clip_score >= {middle}") == {key for key in found if found[key] >= middle}
    best = {key for key in found if found[key] in sorted(found.values())[-2:]}
    assert filtered(pool, "top(clip_score, 0.4)") == best
    assert filtered(pool, "top(clip_score, 0.4)", "width >= 60") == {key for key in best if key[0] == "e"}
    # Of the pairs that another pass keeps.
    curation.filter_pairs(pool, [curation.Rule("format == 'PNG'")], "serial", name="png", progress=False)
    png = {key: found[key] for key in found if key[0] != "b"}
    expected = {key for key in found if found[key] >= max(png.values())}
    assert filtered(pool, "top(clip_score, 0.1)", after=["png"]) == expected
    assert filtered(pool, "listed(key, 'keys')", lists={"keys": ["a", "zz"]}) == {("a", 0)}


def test_filters_that_cannot_be_applied(pool, scores):
    for call in (
        lambda: filtered(pool),
        lambda: filtered(pool, "sharpness > 2"),
        lambda: filtered(pool, "listed(key, 'keys')"),
        lambda: filtered(pool, "words > 2", after=["nothing"]),
    ):
        with pytest.raises(ValueError, match="Received: "):
            call()


def test_a_column_of_two_passes_is_named(clip, pool, scores):
    curation.score(pool, clip, batch_size=4, name="again", progress=False)
    with pytest.raises(ValueError, match="a column of again and of .*score"):
        curation.filter_pairs(pool, [curation.Rule("clip_score > 0")], "serial", progress=False)


def test_images_near_a_test_set(pool, scores):
    embeddings = {key: row["image_embedding"] for (key, _), row in scores[0].items()}
    vectors = {key: np.array([value], np.float32) for key, value in embeddings.items() if value}
    other = -vectors["a"]
    test_sets = {"birds": np.concatenate([other, vectors["b"]]), "cars": vectors["a"]}
    near = curation.TestImages(vectors=test_sets, cosine=0.9999)
    counts = curation.find_test_images(pool, near, "serial", progress=False)
    found = rows(pool, "test_images")
    assert found["b", 0]["reason"] == found["b", 1]["reason"] == "near a test image of birds"
    assert (found["b", 0]["test_set"], found["b", 0]["test_row"]) == ("birds", 1)
    # The pairs "a" and "f" have the same image.
    assert {key[0] for key, row in found.items() if row["reason"] == "near a test image of cars"} == {"a", "f"}
    assert counts["near a test image of cars"] == 2 and found["e", 0]["reason"] is None
    assert found["a", 0]["similarity"] == pytest.approx(1)


def test_an_image_at_the_limit_is_near(pool, scores):
    image = np.array(scores[0]["a", 0]["image_embedding"], np.float32)
    across = np.roll(image, 1) - image * (np.roll(image, 1) @ image)
    vectors = {"one": (0.8 * image + 0.6 * across / np.linalg.norm(across))[None]}
    limit, found = 0.5, {}
    for name in ("wide", "limit"):
        test_images = curation.TestImages(vectors=vectors, cosine=limit, name=name)
        curation.find_test_images(pool, test_images, "serial", progress=False)
        found = rows(pool, name)["a", 0]
        limit = found["similarity"]
    assert limit == pytest.approx(0.8, abs=1e-5) and found["reason"]


def test_images_near_a_test_set_by_hashes(pool, scores):
    profiles = rows(pool, "profile")
    own = np.uint64(profiles["e", 0]["perceptual_hash"])
    index = np.array([own ^ np.uint64(2**64 - 1), own ^ np.uint64(7), own ^ np.uint64(1 << 40), own ^ np.uint64(2)])
    listing = curation.TestImages({"one": index}, distance=3, drop=False, name="listed")
    counts = curation.find_test_images(pool, listing, "serial", progress=False)
    found = rows(pool, "listed")
    assert {row["reason"] for row in found.values()} == {None} and counts == {"near a test image of one": 1}
    assert (found["e", 0]["test_row"], found["e", 0]["similarity"]) == (2, pytest.approx(63 / 64))
    assert found["a", 0]["test_set"] is None and found["d", 0]["similarity"] is None


def test_rows_of_a_test_set_count_its_broken_images(pool, scores, tmp_path):
    """The place of an image in its test set, whatever precedes it."""
    write_tar(tmp_path / "test.tar", [("0.jpg", b"broken"), ("1.jpg", PAIRS["a"][0]), ("2.jpg", b"")])
    index = curation.hash_images(open_reader(str(tmp_path / "test.tar"), captions=False))
    assert np.ma.getmaskarray(index).tolist() == [True, False, True]
    vector = scores[0]["a", 0]["image_embedding"]
    vectors = np.array([[np.nan] * len(vector), vector], np.float32)
    for name, sets in {"hashed": {"hashes": {"one": index}}, "embedded": {"vectors": {"one": vectors}}}.items():
        listing = curation.TestImages(**sets, distance=0, cosine=0.9999, drop=False, name=name)
        curation.find_test_images(pool, listing, "serial", progress=False)
        assert {key[0]: row["test_row"] for key, row in rows(pool, name).items() if row["test_set"]} == {"a": 1, "f": 1}


def test_refused_test_sets():
    for options in ({}, {"hashes": {"a": np.zeros((2, 8), np.uint8)}}, {"vectors": {"a": np.eye(2)}, "cosine": 3}):
        with pytest.raises(ValueError, match="Received: "):
            curation.TestImages(**options)
