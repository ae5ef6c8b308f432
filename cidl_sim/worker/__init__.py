"""The child process of a run: where back ends and model families meet."""
