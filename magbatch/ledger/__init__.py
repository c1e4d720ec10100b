"""What is done, read from the committed objects alone, and the proof that nothing is missing."""
