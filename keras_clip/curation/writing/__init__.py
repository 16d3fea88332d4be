"""Writes the pairs that are kept as new shards in a random order, in two stages that can be interrupted.

1. `partition`: a pass that stores the kept samples of each shard of the pool in the order of the hashes of their keys.
2. `merge`: each new shard is a range of hashes, collected from all shards of the pool.
"""

from keras_clip.curation.writing.merge import WriteSettings, write
from keras_clip.curation.writing.stream import write_stream
