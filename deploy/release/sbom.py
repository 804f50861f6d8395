#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a CycloneDX 1.5 bill of materials of what is linked, from `cargo metadata` on standard input.

    cargo metadata --format-version 1 --locked --filter-platform TARGET | sbom.py > sbom.cdx.json

Development dependencies are left out; build dependencies are in, for they make what is linked. The same input gives the same bytes.
"""
import hashlib
import json
import re
import sys
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


def main():
    metadata = json.load(sys.stdin)
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
    others = sorted((parts[i] for i in linked if i != root), key=lambda c: c["bom-ref"])
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(lock.encode()).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {"component": parts[root]},
        "components": others,
        "dependencies": sorted(
            ({"ref": parts[i]["bom-ref"], "dependsOn": sorted({parts[d]["bom-ref"] for d in edges[i]})} for i in linked),
            key=lambda d: d["ref"],
        ),
    }
    json.dump(bom, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
