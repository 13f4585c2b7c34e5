"""Ask a character-level GPT where people were born, and see how it stores the answer."""
