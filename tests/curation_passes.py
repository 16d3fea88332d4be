"""Passes for the tests of curation. They stand in a module that a worker process can import."""

import time

import pyarrow as pa

from keras_clip.curation import ShardPass


class _Logged(ShardPass):
    def __init__(self, log=None):
        self.log = log

    def note(self, shard):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{shard.name}\n")


class Lengths(_Logged):
    """Counts the characters of captions."""

    name = "lengths"
    reads_source = True

    def __init__(self, factor=1, log=None, interrupted_at=None):
        super().__init__(log)
        self.factor, self.interrupted_at = factor, interrupted_at

    def config(self):
        return {"factor": self.factor}

    def run(self, state, shard, inputs):
        self.note(shard)
        if shard.name == self.interrupted_at:
            raise KeyboardInterrupt
        reader, ids = shard.open()
        lengths = [self.factor * len(captions[0]) for captions in reader.read(ids)[1]]
        return pa.table({"length": lengths}), {"pairs": len(ids), "characters": sum(lengths)}


class CountLetters(_Logged):
    """Reads the table of `Lengths`."""

    name = "letters"
    inputs = ("lengths",)

    def __init__(self, rows=None, log=None):
        super().__init__(log)
        self.rows = rows

    def run(self, state, shard, inputs):
        self.note(shard)
        return inputs["lengths"].slice(0, self.rows), {}


class Slow(Lengths):
    """Takes a while for each shard, so that something can happen meanwhile."""

    name = "slow"

    def __init__(self, log):
        super().__init__(log=log)

    def run(self, state, shard, inputs):
        time.sleep(0.3)
        return super().run(state, shard, inputs)
