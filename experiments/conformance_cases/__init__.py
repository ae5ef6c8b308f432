"""The definitions behind the files in conformance/: what is written down here, `write_conformance.py` writes there."""
