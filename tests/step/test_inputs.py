"""The step takes the names and shapes of its inputs from the model: here video clips and audio."""

import keras
import numpy as np
import pytest
from keras import ops
from video_and_audio import VideoAndAudio, build, pairs, train

from keras_clip.step import Branch, GlobalBatchTrainer

BACKEND = keras.backend.backend()


@pytest.fixture(scope="module")
def direct():
    return train(build(), pairs())


def test_a_step_learns(direct):
    before = [np.array(ops.convert_to_numpy(ops.convert_to_tensor(v))) for v in build().trainable_variables]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(before, direct, strict=True))


@pytest.mark.parametrize("size", [3, 8])
def test_micro_batches(direct, size):
    for one, other in zip(direct, train(build(), pairs(), microbatch_size=size), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class WithTokens(VideoAndAudio):
    """The same model, with "token_ids" as the name of its second input."""

    @property
    def branches(self):
        video, audio = super().branches
        return video, Branch("token_ids", audio.embedder, audio.output_name, has_tokens=True)


@pytest.mark.parametrize("kind, name, length", [(VideoAndAudio, "audio", 0), (WithTokens, "token_ids", 5)])
def test_batch_listener_receives_sizes_and_lengths(kind, name, length):
    model, reads, data = build(kind), [], pairs()
    model.compile("sgd")
    model.batch_listener = reads.append
    model.fit({"video": data["video"], name: data["audio"]}, batch_size=8, verbose=0)
    assert [read.pairs for read in reads] == [[8], [4]]
    assert [read.text_lengths for read in reads] == [[length], [length]]


def test_a_model_must_name_its_inputs():
    with pytest.raises(NotImplementedError, match="must declare its inputs. Received: GlobalBatchTrainer"):
        GlobalBatchTrainer().branches  # noqa: B018


REPLICAS = """
import numpy as np
from video_and_audio import build, pairs, train
one = train(build(), pairs())
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    several = [train(build(), pairs()), train(build(), pairs(), microbatch_size=2)]
for other in several:
    print(max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)))
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="backend unable: tf.distribute")
def test_replicas(distributed):
    distances = distributed(REPLICAS).split()
    assert len(distances) == 2 and max(map(float, distances)) < 1e-6
