"""What backends share must not need one of them."""

from __future__ import annotations

import subprocess
import sys


def test_records_need_no_triton() -> None:
    # None in sys.modules makes every import of that name fail.
    code = "import sys; sys.modules['triton'] = None; import freqformer.ops.block_sparse.records"
    subprocess.run([sys.executable, "-c", code], check=True)
