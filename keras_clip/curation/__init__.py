"""Turns a raw pool of pairs into a training set, in passes over its shards (Radford et al., 2021, section 2.2)."""

from keras_clip.curation.balancing import balance, keep_probability, t_of_tail_share, tail_share
from keras_clip.curation.card import CardSettings, record_command, write_card
from keras_clip.curation.duplicates import DuplicateSettings, find_duplicates
from keras_clip.curation.filters import filter_pairs
from keras_clip.curation.keeping import KeepList, keep, verdicts_of
from keras_clip.curation.leaks import TestImages, find_test_images, fingerprint_images, hash_images
from keras_clip.curation.matching import Matcher, match
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool, read_table, write_table
from keras_clip.curation.profiling import Profile, profile, profile_schema
from keras_clip.curation.queries import (
    Queries,
    build_queries,
    given_queries,
    read_queries,
    read_texts,
    read_titles,
    read_wordnet,
    write_queries,
)
from keras_clip.curation.rules import Rule, all_of, any_of, datacomp_basic, not_, read_rules
from keras_clip.curation.scoring import ImageEmbeddings, Score, embed_images, model_digest, score
from keras_clip.curation.shards import Shard
from keras_clip.curation.validation import Anomaly, Validation, validate
from keras_clip.curation.writing import WriteSettings, write, write_stream
