"""Files to corpus, corpus to sequences, sequences to batches. Imports `errors` only."""
