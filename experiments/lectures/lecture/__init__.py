"""What all claims of the lectures share: how they are stored, run, judged and shown."""
