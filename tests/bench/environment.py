"""Environments of the peers: an interpreter with packages of its own, from a lock."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import venv
from pathlib import Path

INSTALL_S = 600.0
SAID = 400  # characters of what a peer said when it failed


def installed(lock: Path, folder: Path) -> Path | str:
    """The interpreter, installed on demand; or why it cannot be."""
    stamp, wanted = folder / "lock.sha256", hashlib.sha256(lock.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)]
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        return f"the peers cannot be installed: {error}: {said.decode()[-SAID:]}"
    stamp.write_text(wanted)
    return python
