"""One reader per released layout; a release is read where it was unpacked."""
