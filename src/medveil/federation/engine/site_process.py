"""The process of one job at a site: the engine's own, with our transport."""

import runpy

from medveil.federation.engine.driver import install

if __name__ == "__main__":
    install()
    runpy.run_module("nvflare.private.fed.app.client.worker_process", run_name="__main__", alter_sys=True)
