"""Tables of papers: what was published, how it is made here, what came out, and whether it says the same."""
