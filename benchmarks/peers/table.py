"""One line of the table of encrypted inference, the same for every system."""


def row(system, network, seconds, cpu, sent, error, note=""):
    """Print a measurement.

    Args:
        system: whose.
        network: loopback, lan or wan.
        seconds: from sending the image's first byte to the result.
        cpu: processor seconds of the two parties.
        sent: bytes that each of the two parties sent.
        error: largest difference from the network in floating point.
        note: what is not as in the other rows.
    """
    print(
        f"  {system:<12}{network:<9}{seconds:>8.3f} s  CPU {cpu[0]:.3f} + {cpu[1]:.3f} = {sum(cpu):.3f} s  "
        f"{sum(sent) / 1e6:>8.2f} MB ({sent[0] / 1e6:.2f} + {sent[1] / 1e6:.2f})  largest error {error:.1e}"
        + (f"  [{note}]" if note else ""),
        flush=True,
    )
