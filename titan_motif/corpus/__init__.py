"""The built-in corpus, made from what every CPython installation has."""
