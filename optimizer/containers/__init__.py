"""The room of Docker: images and containers of this machine's engine, through its SDK.

A container is never privileged, is never restarted by the engine, and carries in labels the process
that owns it: one that was left by a run that was killed is found and removed by the next.
"""

from optimizer.containers.engine import (
    ContainerEngine,
    ContainerTask,
    EngineContent,
    Image,
    Mount,
    RunningContainer,
)
from optimizer.containers.refusals import HOW_TO_HAND_OUT_GPUS

__all__ = [
    "HOW_TO_HAND_OUT_GPUS",
    "ContainerEngine",
    "ContainerTask",
    "EngineContent",
    "Image",
    "Mount",
    "RunningContainer",
]
