"""A job that sends frames round. Loaded by name in the processes of the test's federation."""

import hashlib
import json
import os
import queue
import threading
import time

from medveil.connect.jobs import RESULT
from medveil.federation.engine.parts import EngineController, EngineExecutor

HELLO = b"hello"
FRAMES = ((1024, 200), (1 << 20, 30))


class EchoExecutor(EngineExecutor):
    """Says hello until the job ends, and sends back what it hears."""

    def program(self, job):
        job.channel.listen(job.channel.post)
        seen = {"me": job.me, "sites": job.sites, "submitter": vars(job.submitter), "home": str(job.home)}
        seen["plan"] = (job.app / "plan.json").read_text()
        (job.home / f"seen-{job.job_id}.json").write_text(json.dumps(seen))
        if json.loads(seen["plan"]).get("defect") == job.me:
            raise ValueError("SECRET of the site")
        while not job.abort.wait(0.2):
            job.channel.post("server", HELLO)
        (job.home / f"ended-{job.job_id}").touch()

    def refused(self, home, job_id, error):
        (home / f"refused-{job_id}").write_text(type(error).__name__)


class EchoController(EngineController):
    """Waits for everybody, measures round trips, and ends as the plan says when a file lets it."""

    def program(self, job):
        plan = json.loads((job.app / "plan.json").read_text())
        heard, present, back = {}, threading.Event(), queue.Queue()

        def hear(peer, frame):
            if frame == HELLO:
                heard[peer] = time.time()
                if set(heard) == set(job.sites):
                    present.set()
            else:
                back.put((peer, len(frame)))

        job.channel.listen(hear)
        present.wait(plan.get("patience_s", 60))
        report = {"at": time.time(), "sites": job.sites, "submitter": vars(job.submitter), "round_trips": {}}
        for size, count in FRAMES if plan.get("measure") else ():
            report["round_trips"][size] = [self.measure(job, size, back) for _ in range(count)]
        (job.home / f"report-{job.job_id}.json").write_text(json.dumps(report))
        if "result_mib" in plan:
            self.leave(job.app / RESULT, plan["result_mib"])
        if plan.get("broken"):
            raise ValueError("SECRET of the server")
        while (job.home / "hold").exists() and not job.abort.wait(0.1):
            (job.home / "heard.json").write_text(json.dumps(heard.copy()))
        return plan.get("ending", "done")

    @staticmethod
    def leave(folder, mebibytes):
        """A run whose weights do not compress; the record says what they are."""
        weights = os.urandom(mebibytes << 20)
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(weights)
        (folder / "record.json").write_text(json.dumps(hashlib.sha256(weights).hexdigest()))

    @staticmethod
    def measure(job, size, back):
        began = time.perf_counter()
        job.channel.post(job.sites[0], bytes(size))
        peer, length = back.get(timeout=30)
        if (peer, length) != (job.sites[0], size):
            raise RuntimeError((peer, length))
        return time.perf_counter() - began
