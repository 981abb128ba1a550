"""The configuration of the nine peers of the papers, one class a peer."""
