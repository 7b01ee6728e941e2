"""What each command does, used by the command line and from Python; parts are only joined here."""
