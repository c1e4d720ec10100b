"""The steps that a row passes through, one file each; none of them imports another, or Ray."""
