"""A job as a whole: what is planned, who works on it, what is done, and the proof at its end."""
