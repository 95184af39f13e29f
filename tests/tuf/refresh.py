"""Reads an image of a store as any TUF client can, and says in JSON what it found.

    refresh.py ROOT URL TARGET STATE

ROOT is the root document to trust, URL the address of the store, TARGET the target of the image,
STATE a directory that is kept between runs. Nothing here knows Circular, except where the
catalogue names the manifest.
"""

import hashlib
import json
import pathlib
import sys
import urllib.request

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater, UpdaterConfig

MANIFEST_BYTES_MAX = 64 * 1024


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def manifest_of(url, reference):
    """Fetches the manifest that a catalogue names, and holds it against what the catalogue says."""
    digest = reference["digest"]
    with urllib.request.urlopen(f"{url}objects/{digest[:2]}/{digest}") as response:
        data = response.read(MANIFEST_BYTES_MAX + 1)
    if len(data) != reference["length"] or sha256(data) != digest:
        raise SystemExit("the manifest is not what the catalogue names")
    return json.loads(data)


def main(root, url, target, state):
    state = pathlib.Path(state)
    for directory in ("metadata", "targets"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    updater = Updater(
        metadata_dir=str(state / "metadata"),
        metadata_base_url=f"{url}metadata/",
        target_dir=str(state / "targets"),
        target_base_url=f"{url}targets/",
        config=UpdaterConfig(prefix_targets_with_hash=True),
        bootstrap=pathlib.Path(root).read_bytes(),
    )
    updater.refresh()
    info = updater.get_targetinfo(target)
    if info is None:
        raise SystemExit(f"there is no target {target}")
    catalogue_bytes = pathlib.Path(updater.download_target(info)).read_bytes()
    catalogue = json.loads(catalogue_bytes)
    version = catalogue["tags"]["latest"]
    reference = catalogue["versions"][version]["manifest"]
    manifest = manifest_of(url, reference)
    timestamp = json.loads((state / "metadata" / "timestamp.json").read_bytes())
    found = {
        "timestamp": timestamp["signed"]["version"],
        "catalogue": {"name": catalogue["name"], "sha256": sha256(catalogue_bytes)},
        "version": version,
        "manifest": {"sha256": reference["digest"], "disk": manifest["disk"]["regions"]["digest"]},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RepositoryError, DownloadError) as error:
        raise SystemExit(f"refused: {type(error).__name__}: {error}") from None
