#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails where a Markdown file of the tree links to a file or a heading that is not there."""
import pathlib
import re
import subprocess
import sys
import urllib.parse

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def prose(path):
    return FENCE.sub("", path.read_text())


def anchors(path):
    """The anchors of a file's headings, as GitHub makes them: a number is added to a repeated one."""
    seen, found = {}, set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(path), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    listed = subprocess.run(["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], check=True, capture_output=True, text=True)
    wrong, links = [], 0
    for name in listed.stdout.splitlines():
        page = root / name
        if not page.exists():
            continue
        for target in LINK.findall(prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            file, _, anchor = urllib.parse.unquote(target).partition("#")
            aim = (page.parent / file).resolve() if file else page
            if not aim.exists():
                wrong.append(f"{name}: {target}: no such file")
            elif anchor and (aim.suffix != ".md" or anchor not in anchors(aim)):
                wrong.append(f"{name}: {target}: no such heading")
    print("\n".join(wrong) or f"{links} links lead somewhere")
    return 1 if wrong else 0


sys.exit(main())
