"""Balances a pool over its queries: frequent ones keep a part of their pairs, rare ones keep all."""

from keras_clip.curation.balancing.limits import keep_probability, t_of_tail_share, tail_share
from keras_clip.curation.balancing.selection import balance
