"""One element, such as a file, a member of a tar or a row of a table: which parts are its image and its captions."""
