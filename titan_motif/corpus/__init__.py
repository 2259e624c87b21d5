"""The built-in corpus: English, code and mathematics from what every CPython installation has."""
