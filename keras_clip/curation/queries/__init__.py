"""Lists of queries: what they are built from, their files, and the form of texts in which they are looked for."""

from keras_clip.curation.queries.building import (
    Queries,
    build_queries,
    given_queries,
    read_queries,
    read_titles,
    read_wordnet,
    write_queries,
)
from keras_clip.curation.queries.corpus import read_texts
