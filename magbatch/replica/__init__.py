"""One engine and the rows of many shards inside it at once."""
