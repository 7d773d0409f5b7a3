"""Whole messages between threads, over a channel that hands frames over."""

import time

from medveil.federation.postman import Postman

SESSION = b"s" * 16


class Pair:
    """Two ends; what one posts the other hears, once both listen."""

    def __init__(self):
        self.handlers = {}
        self.posted = []

    def end(self, me):
        pair = self

        class End:
            def post(self, peer, frame):
                pair.posted.append(bytes(frame))
                if peer in pair.handlers:
                    pair.handlers[peer](me, bytes(frame))

            def listen(self, handler):
                pair.handlers[me] = lambda sender, frame: pair.later(handler, sender, frame)

        return End()

    def later(self, handler, sender, frame):
        import threading

        threading.Thread(target=handler, args=(sender, frame), daemon=True).start()


def _ends(**options):
    pair = Pair()
    left = Postman(pair.end("left"), {"right": SESSION})
    right = Postman(pair.end("right"), {"left": SESSION}, **options)
    return pair, left, right


def test_messages_arrive_whole_in_order_and_once():
    _, left, right = _ends()
    try:
        sent = [bytes([at]) * (at * 5000 + 1) for at in range(30)]
        for data in sent:
            left.send("right", data)
        got = [right.next(10).data for _ in sent]
        assert got == sent
        assert right.next(0.1) is None
        assert left.flush(10)
        assert left.bytes_carried("right")[0] == right.bytes_carried("left")[1] == sum(map(len, sent))
        assert right.silent_s("left") < 5
    finally:
        left.close()
        right.close()


def test_whoever_leaves_after_the_last_message_says_that_it_came():
    _, left, right = _ends()
    try:
        left.send("right", b"farewell")
        assert right.next(10) is not None
        right.close()
        assert left.flush(2)
    finally:
        left.close()
        right.close()


def test_strangers_damage_and_closed_ends_are_ignored():
    pair, left, right = _ends()
    try:
        pair.handlers["right"]("stranger", b"frame")
        pair.handlers["right"]("left", b"no frame at all")
        end = time.monotonic() + 5
        while not right.refused and time.monotonic() < end:
            time.sleep(0.01)
        assert right.refused == {"left": 1}
        assert right.next(0.05) is None
    finally:
        left.close()
        right.close()
    left.send("right", b"late")
    assert right.next(0.1) is None
    assert not left.flush(0.1)


def test_a_peer_whose_messages_nobody_takes_is_held_back():
    _, left, right = _ends(unread_bytes=1000)
    try:
        for _ in range(8):
            left.send("right", b"m" * 900)
            time.sleep(0.05)
        assert not left.flush(0.5)
        assert right._unread["left"] <= 1000 + 900
        taken = [right.next(10) for _ in range(8)]
        assert all(arrival is not None for arrival in taken)
        assert left.flush(10)
    finally:
        left.close()
        right.close()
