"""The process of one job at the server: the engine's own, with our transport."""

import runpy

from medveil.federation.engine.driver import install

if __name__ == "__main__":
    install()
    runpy.run_module("nvflare.private.fed.app.server.runner_process", run_name="__main__", alter_sys=True)
