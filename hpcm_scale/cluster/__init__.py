"""Many hosts: which are there, whether they suit each other, and which can continue together."""
