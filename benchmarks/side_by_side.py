"""Functions timed in turn, so that other work on the machine falls on all of them alike."""

import time

import numpy as np


def table(title, peer, functions, rounds=40):
    """Call each in turn, round after round, and print the fastest and the median, with ratios to ``peer``'s.

    Turns spread other work on the machine over all of them; the ratios hold, the times do not.
    """
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - begun))
    fastest, median = ({name: pick(times) for name, times in taken.items()} for pick in (min, np.median))
    print(f"{title:55s} fastest    ratio    median    ratio")
    for name in functions:
        shown = "".join(f"{each[name]:7.2f} ms {each[name] / each[peer]:6.2f} x" for each in (fastest, median))
        print(f"  {name:50s} {shown}")
