"""Programs of an interpreter with other packages: pytest imports none of them."""

collect_ignore_glob = ["*.py"]
