"""Which span of a document is masked."""
