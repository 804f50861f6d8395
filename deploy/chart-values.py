#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the page of the chart's values: each with its default and the comment above it in values.yaml.

    chart-values.py VALUES_YAML
"""
import re
import sys

KEY = re.compile(r"^( *)([A-Za-z0-9_./-]+):(?: (.*))?$")


def rows(lines):
    """(name, default, comment) of each value; a map's own comment goes before those of its first entry."""
    path, comments = [], []
    for line in lines:
        text = line.strip()
        if not text:
            comments = []
        elif text.startswith("#"):
            comments.append(text[1:].strip())
        else:
            match = KEY.match(line)
            if not match:
                sys.exit(f"chart-values.py: not understood: {line}")
            depth = len(match[1]) // 2
            path = path[:depth] + [match[2]]
            if match[3] is not None:
                yield ".".join(path), match[3], " ".join(comments)
                comments = []


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = file.read().splitlines()
    print("# Values of the chart\n")
    print("Generated from `charts/hyper2kvm-operator/values.yaml`: `make generate`. What to set when is told in")
    print("[operations-cluster.md](operations-cluster.md). A value that is not listed here is refused, but for those in `global`.\n")
    print("| value | default | |\n|---|---|---|")
    for name, default, comment in rows(lines):
        print(f"| `{name}` | `{default}` | {comment.replace('|', '&#124;')} |")


main()
