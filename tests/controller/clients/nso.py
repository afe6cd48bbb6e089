"""What a program does with the client library cisco-nso-restconf, over mutual TLS.

usage: nso.py PORT CERTIFICATE KEY AUTHORITY
"""

import sys
from contextlib import contextmanager

import requests
from cisco_nso_restconf.client import NSORestconfClient

TOP = "shunt-inventory:inventory"

port, certificate, key, authority = sys.argv[1:]
client = NSORestconfClient(scheme="https", address="localhost", port=int(port))
client.session.cert = (certificate, key)
client.session.verify = authority
# Else REQUESTS_CA_BUNDLE of the environment would be believed instead.
client.session.trust_env = False


@contextmanager
def refused(status, path=""):
    """The answer must be this status, and name the leaf at fault."""
    try:
        yield
    except requests.HTTPError as error:
        answer = error.response
        told = answer.json()["ietf-restconf:errors"]["error"][0]
        assert answer.status_code == status, answer.text
        assert path in told.get("error-path", ""), told
    else:
        raise AssertionError(f"not refused with {status}")


def call(method, path, body, **headers):
    """PUT and PATCH, which the library leaves to its session."""
    answer = client.session.request(method, f"{client.base_url}/data/{path}", json=body, headers=headers)
    answer.raise_for_status()
    return answer


# Missing, create, conflict.
with refused(404):
    client.get(f"{TOP}/tenant=initech")
tenant = {"shunt-inventory:tenant": [{"name": "initech"}]}
made = client.post(TOP, tenant)
assert made.status_code == 201, made
assert made.headers["location"].endswith("/tenant=initech"), made.headers
with refused(409):
    client.post(TOP, tenant)

# Read, patch, replace, each as the one before left it.
first = client.get(f"{TOP}/tenant=initech")
assert first.json() == tenant, first.text
kill = {"shunt-inventory:tenant": [{"name": "initech", "kill": True}]}
patched = call("PATCH", f"{TOP}/tenant=initech", kill, **{"If-Match": first.headers["etag"]})
assert patched.status_code == 204, patched
assert client.get(f"{TOP}/tenant=initech/kill").json() == {"shunt-inventory:kill": True}
replaced = call("PUT", f"{TOP}/tenant=initech", tenant)
assert replaced.status_code == 204, replaced
assert client.get(f"{TOP}/tenant=initech/kill").json() == {"shunt-inventory:kill": False}

# Stale, of the wrong type, unknown.
with refused(412):
    call("PUT", f"{TOP}/tenant=initech", kill, **{"If-Match": first.headers["etag"]})
with refused(400, "/kill"):
    call("PUT", f"{TOP}/tenant=initech/kill", {"shunt-inventory:kill": "yes"})
with refused(400):
    call("PATCH", f"{TOP}/tenant=initech", {"shunt-inventory:tenant": [{"name": "initech", "x": 1}]})

# Delete.
assert client.delete(f"{TOP}/tenant=initech").status_code == 204
with refused(404):
    client.delete(f"{TOP}/tenant=initech")
print("done")
