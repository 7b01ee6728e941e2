"""What each command does, used by the command line and from Python; parts are only joined here.

In the classes of options, `results` is the folder of the studies, `cache` is that of the artefact
cache (None is this user's), and a study is a name in `results` or the path of its own folder.
Mistakes and missing requirements are reported before anything starts. All errors are branches of
`optimizer.errors.OptimizerError`.
"""
