"""The parts of an evaluation, one file each: the data that a part requires, its run function and its tables."""
