"""Core ML: export of blocks, an interpreter for their programs, packages that a Mac can run."""
