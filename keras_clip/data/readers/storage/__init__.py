"""Files on disk: finds them by name, and gives random access to the bytes of their samples."""
