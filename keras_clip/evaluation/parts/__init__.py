"""The parts of an evaluation, one file a part: what it needs of a task, what it runs and which tables it fills."""
