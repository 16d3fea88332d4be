"""Search of a folder of pictures by words and pictures."""
