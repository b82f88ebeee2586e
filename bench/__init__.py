"""What `make bench` runs: ours and its peers on the same cores, in turn, in one run."""
