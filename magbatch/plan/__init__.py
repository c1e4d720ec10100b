"""What is asked: input files as shards of rows, frozen before the first row is answered."""
