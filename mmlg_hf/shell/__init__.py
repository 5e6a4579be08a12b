"""What all commands share: how they print, and how they end where they cannot do their work."""
