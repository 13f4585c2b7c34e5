"""Use one trained model: load, decode, score, export. Imports `runs` and what lies below it."""
