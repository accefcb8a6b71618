-- Pages that are freed when the disk is full, so that the file need not grow to take in what must still be recorded.
CREATE TABLE reserve (
    room BLOB NOT NULL
) STRICT;
