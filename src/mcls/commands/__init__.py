"""One file a command; each has `run(arguments) -> exit status`. They never import each other."""
