"""What OpenSSH's client says when it cannot connect, and what to do about each."""

import re

_KNOWN = (
    # Pattern, problem, hint, whether it may pass by itself.
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one on record, so this may be another machine",
        "If it was installed anew, remove the old key (`ssh-keygen -R {name}`), and log in once by hand.",
        False,
    ),
    (
        r"Host key verification failed|host key is known for",
        "its host key is not known here",
        "Log in once by hand (`ssh {host}`) and compare the fingerprint before you accept it.",
        False,
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "it accepts none of the keys that were offered",
        "Log in by hand (`ssh {host}`); if that asks for a password, run `ssh-copy-id {host}` first.",
        False,
    ),
    (
        r"Could not resolve hostname",
        "no host of this name is known",
        "Check the name, or give its address in ~/.ssh/config.",
        False,
    ),
    (r"Bad configuration option|Can't open user config file|terminating, .* bad configuration", "", "", False),
    (
        r"Connection refused",
        "it refuses the connection{port}",
        "Check that an SSH server runs there, and on which port.",
        True,
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "it does not answer{port}",
        "Check that it is switched on and reachable from here (`ping {name}`).",
        True,
    ),
    (
        r"Connection (closed|reset)|Broken pipe|kex_exchange_identification",
        "it closed the connection before the login was done",
        "Look into the log of its SSH server; it may be overloaded or limit connections.",
        True,
    ),
)


def connection_problem(host: str, said: str) -> tuple[str, str, bool]:
    """Return what is wrong, what to do, and whether it may pass by itself, from what ssh wrote to stderr.

    >>> connection_problem("pi@box", "ssh: connect to host box port 22: Connection refused")[0]
    'it refuses the connection (port 22)'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    port = re.search(r"connect to \S+(?: \S+)? port (\d+)", said)
    words = {"host": host, "name": host.rpartition("@")[2], "port": f" (port {port[1]})" if port else ""}
    for pattern, problem, hint, passing in _KNOWN:
        if re.search(pattern, said):
            if not problem:
                return f"ssh does not read its configuration: {lines[0]}", "Correct that line.", False
            return problem.format(**words), hint.format(**words), passing
    last = f"ssh says: {lines[-1]}" if lines else "ssh ended without a word"
    return last, f"Try `ssh {host} true` by hand.", True
