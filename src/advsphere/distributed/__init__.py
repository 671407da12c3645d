"""Several processes as one run: who takes which part, what all agree on, and failing together.

torchrun starts the processes and tells each of them its place in the environment. Without it the world is this process
alone, and everything here is a matter of course.
"""

from advsphere.distributed.joining import joined, leave
from advsphere.distributed.world import World, cut

__all__ = [
    "World",
    "cut",
    "joined",
    "leave",
]
