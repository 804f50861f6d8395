#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a CycloneDX 1.5 bill of materials of what is linked, from `cargo metadata` on standard input.

    cargo metadata --format-version 1 --locked --filter-platform TARGET | sbom.py [PACKAGES] > sbom.cdx.json

PACKAGES has the Debian packages that lie beside it, a name and a version a line.
Development dependencies are left out; build dependencies are in, for they make what is linked. The same input gives the same bytes.
"""
import hashlib
import json
import re
import sys
import urllib.parse
import uuid


def component(package, kind, checksums):
    ref = f"pkg:cargo/{package['name']}@{package['version']}"
    made = {"type": kind, "bom-ref": ref, "name": package["name"], "version": package["version"], "purl": ref}
    if package.get("description"):
        made["description"] = " ".join(package["description"].split())
    if package.get("license"):
        # The older "MIT/Apache-2.0" is no SPDX expression.
        made["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if checksum := checksums.get((package["name"], package["version"])):
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return made


def debian(line):
    name, version = line.split()
    ref = f"pkg:deb/debian/{name}@{urllib.parse.quote(version)}"
    return {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}


def main():
    metadata = json.load(sys.stdin)
    beside = open(sys.argv[1]).read() if sys.argv[1:] else ""
    lock = open(f"{metadata['workspace_root']}/Cargo.lock").read()
    checksums = {(n, v): c for n, v, c in re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"', lock)}
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    linked, todo, edges = set(), [root], {}
    while todo:
        here = todo.pop()
        if here in linked:
            continue
        linked.add(here)
        edges[here] = [d["pkg"] for d in nodes[here]["deps"] if any(k["kind"] != "dev" for k in d["dep_kinds"])]
        todo += edges[here]
    parts = {i: component(packages[i], "application" if i == root else "library", checksums) for i in linked}
    others = [parts[i] for i in linked if i != root] + [debian(line) for line in beside.splitlines()]
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256((lock + beside).encode()).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {"component": parts[root]},
        "components": sorted(others, key=lambda c: c["bom-ref"]),
        "dependencies": sorted(
            ({"ref": parts[i]["bom-ref"], "dependsOn": sorted({parts[d]["bom-ref"] for d in edges[i]})} for i in linked),
            key=lambda d: d["ref"],
        ),
    }
    json.dump(bom, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
