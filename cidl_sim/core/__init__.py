"""The nouns, the rules of execution and the files: no clocks, no torch."""
