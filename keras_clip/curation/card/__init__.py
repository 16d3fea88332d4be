"""Writes the data card of a curated pool, as an HTML page that loads nothing else and as Markdown.

`summary` reads the results of the passes, shard by shard; `page` lays them out.
"""

from keras_clip.curation.card.page import CardSettings, record_command, write_card
