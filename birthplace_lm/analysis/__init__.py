"""Read what runs leave; never train. Imports `inference` and what lies below it."""
