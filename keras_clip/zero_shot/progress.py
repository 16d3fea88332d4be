"""The progress bar of work that may take long."""

# Seconds before a progress bar appears.
PROGRESS_DELAY = 5


def progress(total: int | None, description: str, hidden: bool = False):
    """Returns a progress bar that appears after `PROGRESS_DELAY` seconds, as a context manager.

    Args:
        total: number of items, or None if it is not known.
        description: what is done, for the bar.
        hidden: whether the bar never appears.

    Returns:
        A bar of tqdm.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=description, delay=PROGRESS_DELAY, leave=False, disable=hidden)
