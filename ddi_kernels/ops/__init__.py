"""One operator a file: its schema, its reference, its checks, and what torch has to know of it."""
