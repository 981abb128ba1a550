"""Files with what a decoder must find in them, step by step, and the program that compares."""
