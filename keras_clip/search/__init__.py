"""Search in your own pictures: an index that grows, queries of words and pictures, labels, and a page."""
