"""Model families: what each is to the rest (`pipeline`), which there are (`catalog`), a folder for each."""
