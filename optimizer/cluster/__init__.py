"""Where trials run at the same time: worker processes on the slots of this machine."""
