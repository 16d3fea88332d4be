"""Searching an index of files equals `evaluation`'s text-to-image retrieval on the same pictures and captions."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_clip
from picture_folders import age
from PIL import Image

from keras_clip.data import synthetic
from keras_clip.evaluation import retrieval_ranks
from keras_clip.search import Filters, PictureIndex, Query, Searcher, Term, update_index


@pytest.fixture(scope="module")
def clip():
    return small_clip.build("convolution", vocabulary_size=49408)


def draw_scenes(folder, count):
    for number in range(count):
        scene = synthetic.sample_scene(number, seed=2)
        path = folder / f"{number:03d}.png"
        Image.fromarray(synthetic.draw(scene, 48)).save(path)
        path.with_suffix(".txt").write_text(synthetic.caption(scene))


def extract(shards, folder):
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder, filter="data")
    for path in folder.glob("*.json"):
        path.unlink()


def opened(folder, clip):
    """An index of the pictures in a folder."""
    for path in folder.iterdir():
        age(path)
    update_index(folder.parent / "index", folder, clip, progress=False)
    return PictureIndex.open(folder.parent / "index")


def rank_of(searcher, text, picture):
    """The rank of a picture for a text, on all pages; others of equal score rank before it, as by `retrieval_ranks`."""
    results, cursor = [], None
    while cursor or not results:
        page = searcher.search(Query([Term(text=text)]), limit=100, cursor=cursor)
        results += page.results
        cursor = page.cursor
    scores = {result.id: result.score for result in results}
    assert len(scores) == len(results) == page.total
    return sum(score >= scores[picture] for score in scores.values())


def require_equal_retrieval(folder, clip):
    index = opened(folder, clip)
    pictures = [index.picture(id) for id in index.ids]
    captions = [picture.path.with_suffix(".txt").read_text().strip() for picture in pictures]
    token_ids = clip.tokenizer(captions, truncate=True)
    texts = clip.text_embedder.predict(token_ids, batch_size=64, verbose=0)
    embeddings = clip.image_embedder.predict(
        clip.image_preprocessor.to_uint8([picture.path for picture in pictures]), batch_size=64, verbose=0
    )
    ranks = retrieval_ranks(embeddings, texts)
    searched = Searcher(index, clip)
    found = np.array([rank_of(searched, *pair) for pair in zip(captions, index.ids.tolist(), strict=True)])
    expected = ranks.text_to_image
    # Cosines that differ in their last bits may change places; the recall is the same.
    assert np.abs(found - expected).max() <= 1 and (found == expected).mean() > 0.98
    for k in (1, 5, 10):
        assert (found <= k).mean() == (expected <= k).mean()
    return searched


def test_drawn_scenes(tmp_path, clip):
    (tmp_path / "pictures").mkdir()
    draw_scenes(tmp_path / "pictures", 40)
    searched = require_equal_retrieval(tmp_path / "pictures", clip)
    # A picture from elsewhere has the embedding that the index has of it.
    upload = (tmp_path / "pictures" / "007.png").read_bytes()
    page = searched.search(Query([Term(upload=upload)]), limit=1)
    assert searched.index.picture(page.results[0].id).name == "007.png"
    assert page.results[0].score == pytest.approx(1, abs=1e-5)
    assert searched.search("", Filters(words="007.png", folder="0:")).total == 1
    assert sum(cluster.pictures for cluster in searched.clusters(4)) == 40
    assert (Path(searched.index.folder) / "copies.npz").exists() is False
    assert searched.search("", collapse=0.9).total <= 40
    assert (Path(searched.index.folder) / "copies.npz").exists()


@pytest.mark.backend_free
@pytest.mark.parametrize("shards", ["grocery/val", "emoji/val_unseen_combinations"])
def test_shared_pictures(tmp_path, shared_data, clip, shards):
    extract(shared_data / shards, tmp_path / "pictures")
    require_equal_retrieval(tmp_path / "pictures", clip)
