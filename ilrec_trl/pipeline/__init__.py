"""The stages behind the command line: prepare, train, evaluate, and all of them in one run."""
