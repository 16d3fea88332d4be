"""Turns a raw pool of pairs into a training set, in passes over its shards (Radford et al., 2021, section 2.2)."""

from keras_clip.curation.keeping import KeepList, keep, verdicts_of
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool, Shard, read_table, write_table
from keras_clip.curation.profiling import Profile, profile, profile_schema
from keras_clip.curation.writing import WriteSettings, write, write_stream
