"""The only place where parts are chosen and joined; used by the command line and from Python."""
