"""Puts together what `deno task gpu:pack` cut: every archive in out/pack that is not unpacked yet, into this project.

Each folder of out/pack holds one piece, `<archive>-<number>/piece`; the first one also holds `archive.json`, with the
number of pieces and the hash of all together.
"""

import hashlib
import json
import pathlib
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path.cwd()
PACK = ROOT / "out/pack"
MACHINE = ROOT / "out/machine"


def unpack(name):
    facts = json.loads((PACK / f"{name}-00/archive.json").read_text())
    stamp = MACHINE / f"{name}.sha256"
    if stamp.exists() and stamp.read_text() == facts["sha256"]:
        return
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as whole:
        for number in range(facts["pieces"]):
            piece = PACK / f"{name}-{number:02}/piece"
            if not piece.exists():
                sys.exit(f"{piece} is not here: carry all of out/pack")
            data = piece.read_bytes()
            digest.update(data)
            whole.write(data)
        if digest.hexdigest() != facts["sha256"]:
            sys.exit(f"The pieces of {name} are not those that were packed together: carry all of out/pack again")
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:xz") as archive:
            # As Python says it for versions that know of filters and for those before.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(ROOT)
    for wheel in (MACHINE / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(MACHINE / "site")
        wheel.unlink()
    stamp.write_text(facts["sha256"])
    print(f"unpacked {name}", file=sys.stderr)


MACHINE.mkdir(parents=True, exist_ok=True)
for first in sorted(PACK.glob("*-00")):
    unpack(first.name.removesuffix("-00"))
if not (MACHINE / "deno").exists():
    sys.exit("out/pack has no Deno: make it by `deno task gpu:pack` and carry it here")
