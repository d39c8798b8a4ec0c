"""The inference service beside other servers: the same graph, the same images, one core each, in turns.

    stride bench serve [--quick] [--peers fastapi,starlette] [--minutes 24]

24 minutes on two cores, under 3 with --quick; a first run also installs the other servers (some 2 GB). Writes
RESULTS.md and results.json, and exits 1 where a bar is missed.
"""
