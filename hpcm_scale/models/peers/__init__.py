"""The networks of the nine peers of the papers, one a module; PEERS.md says what each is."""
