"""A federation of two hospitals: what its file says, and the folder with everybody's kits."""

from medveil.connect.provision import provision

LEAD = "lead@a.org"
FEDERATION = f"""
name = "demo"
[server]
host = "localhost"
port = 8102
org = "hub"
[[sites]]
name = "site-1"
org = "a"
[[sites]]
name = "site-2"
org = "b"
[[users]]
name = "{LEAD}"
org = "a"
role = "lead"
"""


def provisioned(folder, more=""):
    """Write the federation's file into ``folder``, with ``more`` at its end, and make the kits; the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "federation.toml").write_text(FEDERATION + more)
    provision(folder)
    return folder
