"""From a model's source to the files that each runtime serves, and how accurate they are.

`workshop.Workshop` is the way in; everything else here runs in its child process, apart from the
pure comparison in `accuracy`.
"""
