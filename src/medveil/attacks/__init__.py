"""The red team: attacks on what a training gives away, one file each (:class:`medveil.attacks.attack.Attack`)."""
