"""What each command does, used by the command line and from Python; parts are only joined here.

Mistakes and missing requirements are reported before anything starts. All errors are branches of
`optimizer.errors.OptimizerError`.
"""
