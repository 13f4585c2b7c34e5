"""What the model reads: corpora, questions and the batches made of them."""
