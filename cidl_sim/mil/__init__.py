"""The program of a Core ML package (MIL), read and run operation by operation."""
