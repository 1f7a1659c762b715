"""The claims lab: the paper's claims in runs of growing length, as docs/lab.md describes it."""
