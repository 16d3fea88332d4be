"""Measures how well the orders of training shuffle, against a random permutation, and the orders of webdataset's kind.

    python tools/measure_shuffle.py
    python tools/measure_shuffle.py --samples 10000000 --shard 10000

For each order it prints the mean displacement (position in the epoch minus position in the shards, over the number of
samples; 1/3 of a random permutation), the share of neighbours kept (samples that are followed by the next one of their
shard), the share of pairs of a batch of 256 that are from the same shard, over that of a random permutation, and how
many other files are opened per 1,000 samples if 256 are kept open.
"""

import sys
import time
from collections import OrderedDict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

BATCH, OPEN_FILES = 256, 256


def random_permutation(samples, shard, seed):
    import numpy as np

    return np.random.default_rng(seed).permutation(samples)


def shuffle_buffer(samples, shard, seed, buffer=5000):
    """Shards in a random order, and a buffer of 5,000 samples, as webdataset does."""
    import numpy as np

    rng = np.random.default_rng(seed)
    shards = rng.permutation(-(-samples // shard))
    stream = np.concatenate([np.arange(each * shard, min(samples, (each + 1) * shard)) for each in shards])
    held, order = stream[:buffer].copy(), np.empty_like(stream)
    draws = rng.integers(0, buffer, len(stream))
    for place, sample in enumerate(stream[buffer:].tolist()):
        order[place], held[draws[place]] = held[draws[place]], sample
    order[len(stream) - buffer :] = rng.permutation(held)
    return order


def ours(shuffle):
    def order(samples, shard, seed):
        import numpy as np

        from keras_clip.data.epochs.order import SampleOrder

        found = SampleOrder(samples, shuffle, seed, 0)
        return np.concatenate([found.samples(np.arange(k, min(samples, k + 4096))) for k in range(0, samples, 4096)])

    return order


ORDERS = {
    "random permutation (NumPy)": random_permutation,
    'shuffle="samples"': ours("samples"),
    'shuffle="blocks"': ours("blocks"),
    "shards shuffled, buffer of 5,000": shuffle_buffer,
}


def opened(shards):
    """Returns how many files are opened when the last 256 are kept open."""
    kept, count = OrderedDict(), 0
    for shard in shards.tolist():
        if shard not in kept:
            count += 1
        kept[shard] = None
        kept.move_to_end(shard)
        if len(kept) > OPEN_FILES:
            kept.popitem(last=False)
    return count


def measures(order, shard):
    import numpy as np

    samples = len(order)
    batches = order[: samples // BATCH * BATCH].reshape(-1, BATCH) // shard
    ordered = np.sort(batches, axis=1)
    # Pairs of equal shards by the lengths of runs.
    pairs = 0
    for batch in ordered[:: max(1, len(ordered) // 2000)]:
        counts = np.unique(batch, return_counts=True)[1]
        pairs += (counts * (counts - 1)).sum() / (BATCH * (BATCH - 1))
    share = pairs / len(ordered[:: max(1, len(ordered) // 2000)])
    some = order[:200_000] // shard
    return (
        np.abs(order - np.arange(samples)).mean() / samples,
        (np.diff(order) == 1).mean(),
        share * samples / shard,
        1000 * opened(some) / len(some),
    )


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--shard", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_args(argv)
    print(f"{arguments.samples:,} samples in shards of {arguments.shard:,}\n")
    print(
        "| order | mean displacement | neighbours kept | pairs of one shard in a batch | files opened per 1,000 | ns |"
    )
    print("|---|---|---|---|---|---|")
    for name, function in ORDERS.items():
        start = time.process_time()
        order = function(arguments.samples, arguments.shard, arguments.seed)
        each = (time.process_time() - start) / arguments.samples * 1e9
        displacement, neighbours, share, files = measures(order, arguments.shard)
        print(f"| {name} | {displacement:.4f} | {neighbours:.1e} | {share:.2f} x | {files:.1f} | {each:.0f} |")


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
